"""How busy the machine is with other things than this node: CPU, GPU and battery, as far as it has such sensors.

The doors to psutil and NVML are here and in `hardware`; whatever they cannot tell on this machine is None.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

import psutil
from attrs import frozen

T = TypeVar("T")
Process = tuple[int, float]  # number and start, since numbers are used again
# The processors' clocks tick a hundred times a second: over less time than this a share would be chance.
_LEAST_S: Final = 0.1
# NVML keeps some seconds of samples for each process; older ones than this say nothing of now.
_GPU_SAMPLE_S: Final = 2.0


@frozen
class Use:
    """What others use: shares from 0 to 1, of all processors and of the busiest GPU; None without such a sensor."""

    cpu: float | None
    gpu: float | None
    on_battery: bool | None

    @property
    def missing(self) -> tuple[str, ...]:
        """The sensors that this machine does not have, by name."""
        known = {"CPU": self.cpu, "GPU": self.gpu, "battery": self.on_battery}
        return tuple(name for name, value in known.items() if value is None)


class Sensors:
    """Reads the machine. One reading at a time; each tells the CPU's use since the one before, the first nothing."""

    def __init__(self, own: Callable[[], Mapping[Process, float]] | None = None) -> None:
        """`own` gives the CPU seconds of the processes that are no others: this one and all below it, unless said."""
        self._own_now = own or own_seconds
        self._busy, self._whole = _processors()
        self._own = self._own_now()
        self._gpus = _Gpus()

    def read(self) -> Use:
        """What others use now. Takes some milliseconds, and reads files: not for the event loop."""
        return Use(self._cpu(), self._gpus.read(), _on_battery())

    def _cpu(self) -> float | None:
        busy, whole = _processors()
        if whole - self._whole < _LEAST_S * (psutil.cpu_count() or 1):
            return None
        own = self._own_now()
        # What has ended since, or began before, is counted as nothing: better a little too much than an error.
        mine = sum(max(seconds - self._own.get(process, 0.0), 0.0) for process, seconds in own.items())
        passed, used = whole - self._whole, busy - self._busy
        self._busy, self._whole, self._own = busy, whole, own
        return min(max((used - mine) / passed, 0.0), 1.0)

    def close(self) -> None:
        """Let go of the GPUs; again does nothing."""
        self._gpus.close()


def _processors() -> tuple[float, float]:
    """Seconds that all processors together were busy, and that they were there, since the machine started."""
    times = psutil.cpu_times()._asdict()
    # A guest's time is in "user" already; stolen time went to other machines, and waiting for disks uses nothing.
    whole = sum(seconds for name, seconds in times.items() if name not in ("guest", "guest_nice"))
    idle = sum(times.get(name, 0.0) for name in ("idle", "iowait", "steal"))
    return whole - idle, whole


def own_seconds() -> dict[Process, float]:
    """CPU seconds of this process and all below it, those that live now."""
    me = psutil.Process()
    own: dict[Process, float] = {}
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            own[process.pid, process.create_time()] = times.user + times.system
    return own


def _on_battery() -> bool | None:
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, RuntimeError, ValueError, NotImplementedError):
        return None  # some systems have the function and no such sensor
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def share_of_others(samples: Sequence[tuple[int, int, int]], own: Collection[int]) -> float:
    """What other processes use of a GPU, from NVML's samples: process, time, per cent; the newest of each counts."""
    newest: dict[int, tuple[int, int]] = {}
    for process, at, per_cent in samples:
        if per_cent <= 100:  # more is NVML's way to say that it does not know
            newest[process] = max(newest.get(process, (0, 0)), (at, per_cent))
    used = sum(per_cent for process, (_, per_cent) in newest.items() if process not in own)
    return min(used / 100, 1.0)


class _Gpus:
    """NVIDIA's GPUs, by NVML. Others tell nobody who uses them."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # noqa: BLE001 - no library, no driver, no right: then there is no such sensor
            return
        self._nvml = pynvml
        with contextlib.suppress(pynvml.NVMLError):
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

    def read(self) -> float | None:
        """The share of the busiest GPU that other processes use."""
        if not self._handles:
            return None
        own = {pid for pid, _ in own_seconds()}
        shares = [share for handle in self._handles if (share := self._others(handle, own)) is not None]
        return max(shares, default=None)

    def _others(self, handle: Any, own: set[int]) -> float | None:
        """By process where the driver tells, else the whole as long as this node is not at work there itself."""
        by_process = self._ask(lambda: self._by_process(handle, own))
        if by_process is not None:
            return by_process
        users = self._ask(lambda: {one.pid for one in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)})
        if users is None or users & own:
            return None
        return self._ask(lambda: float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100)

    def _by_process(self, handle: Any, own: set[int]) -> float:
        since_us = int((time.time() - _GPU_SAMPLE_S) * 1e6)
        samples = self._nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
        return share_of_others([(one.pid, one.timeStamp, one.smUtil) for one in samples], own)

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._nvml, self._handles = None, []
