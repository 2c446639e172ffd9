"""What this machine has to compute with."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """How many threads an engine should use: the physical cores this process may run on.

    Two threads on one core share its arithmetic units, and only slow matrix products down. Where the system
    does not tell its cores apart (only Linux does here), all of its processors count.
    """
    allowed = _allowed()
    cores = {_core(cpu) for cpu in allowed}
    return max(1, len(cores))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _core(cpu: int) -> tuple[str, ...]:
    topology = _CPUS / f"cpu{cpu}" / "topology"
    with suppress(OSError):
        return tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id"))
    return (str(cpu),)
