/* Makes syncs last as long as on a disk that does so many in a second: the real one is done, and the rest is waited for.
   One at a time in all processes that load it, as in a disk's queue. Loaded by benchmarks/slow_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

typedef int (*sync_call)(int);

static int lengthened(const char *name, int file) {
    struct timespec end;
    long last_ns = atol(getenv("SLOW_DISK_NS"));
    /* Opened each time: threads that share a handle would share its lock. */
    int queue = open(getenv("SLOW_DISK_QUEUE"), O_RDONLY | O_CLOEXEC);
    if (queue < 0)
        return -1;
    while (flock(queue, LOCK_EX) != 0 && errno == EINTR)
        ;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += last_ns % 1000000000L;
    end.tv_sec += last_ns / 1000000000L + end.tv_nsec / 1000000000L;
    end.tv_nsec %= 1000000000L;
    int result = ((sync_call)dlsym(RTLD_NEXT, name))(file);
    int error = errno;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == EINTR)
        ;
    close(queue);
    errno = error;
    return result;
}

int fsync(int file) { return lengthened("fsync", file); }
int fdatasync(int file) { return lengthened("fdatasync", file); }
