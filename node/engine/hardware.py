"""What this machine has to compute with, and how an engine is set up on it unless its owner says otherwise.

`read_machine` looks; all that follows from it is a pure function of the `Machine` that it saw.
"""

import contextlib
import math
import os
from pathlib import Path
from typing import Final

import psutil
from attrs import frozen

from node.models.footprint import Footprint
from node.models.llama import backend
from node.models.weights import KvType

GIB: Final = 2**30
DEFAULT_CONTEXT: Final = 8_192  # tokens for each sequence, where the model can do more
LEAST_CONTEXT: Final = 512  # tokens; with less there is no conversation, and loading fails with advice instead
_CPU_SLOTS, _GPU_SLOTS = (4, 16), 32
_CPU_BATCH, _GPU_BATCH = 256, 1_024  # tokens computed at once; more is little faster, and holds running streams up
_FILLED: Final = 4  # slots for which one context's room is enough
_CPUS: Final = Path("/sys/devices/system/cpu")
_CGROUP: Final = Path("/sys/fs/cgroup")


@frozen
class Gpu:
    """A graphics processor. `memory` in bytes, in all."""

    name: str
    memory: int


@frozen
class Machine:
    """What there is: physical cores that may be used, main memory in bytes, GPUs that can be asked, and what the
    installed llama.cpp computes on ("cpu-avx2", "cuda", "mtl"...)."""

    cores: int
    memory: int
    gpus: tuple[Gpu, ...] = ()
    backend: str = "cpu"

    @property
    def offloads(self) -> bool:
        """Whether llama.cpp can put layers elsewhere than on the CPU."""
        return not self.backend.startswith("cpu")


@frozen
class Wishes:
    """What the owner set; None leaves it to the machine."""

    slots: int | None = None
    context: int | None = None
    threads: int | None = None
    batch: int | None = None
    kv: KvType | None = None
    gpu_layers: int | None = None


@frozen
class Plan:
    """How an engine is loaded: jobs at once, tokens for each at most, tokens that the KV cache holds for all of them
    together, threads, tokens in one batch, the KV cache's numbers, layers on the GPU (-1 all), tokens that are kept for
    later outside of the cache, and what all of it takes in bytes, estimated."""

    slots: int
    context: int
    cells: int
    threads: int
    batch: int
    kv: KvType
    gpu_layers: int
    kept: int
    bytes: int


def plan(machine: Machine, footprint: Footprint, wishes: Wishes, allowed: int) -> Plan:
    """The owner's wishes, and for the rest what suits the machine and fits into `allowed` bytes.

    The KV cache takes half of what the weights leave, so that another model has room, or more where one conversation
    needs it; what is kept of it for later may take half as much again. Each slot has a context of its own, and replays
    have one; where there is less, they share what there is, for few conversations fill their context: a quarter of one
    for each slot at least, and where that is not there, slots are given up before context. What is wished stands,
    also if it does not fit.
    """
    gpu_layers = wishes.gpu_layers if wishes.gpu_layers is not None else (-1 if machine.offloads else 0)
    on_gpu = machine.offloads and gpu_layers != 0
    kv: KvType = wishes.kv or "f16"
    room = footprint.room(allowed, kv)
    slots, context, cells = _shape(machine, footprint, wishes, room, on_gpu)
    kept = max(0, min(cells // 2, room - cells))
    batch = wishes.batch or (_GPU_BATCH if on_gpu else _CPU_BATCH)
    return Plan(
        slots=slots,
        context=context,
        cells=cells,
        threads=wishes.threads or machine.cores,
        batch=min(batch, context),
        kv=kv,
        gpu_layers=gpu_layers,
        kept=kept,
        bytes=footprint.bytes(cells + kept, kv),
    )


def _shape(machine: Machine, footprint: Footprint, wishes: Wishes, room: int, on_gpu: bool) -> tuple[int, int, int]:
    """Slots, tokens for each, and tokens for all; `room` is for how many tokens there is memory."""
    least, most = _CPU_SLOTS
    slots = wishes.slots or (_GPU_SLOTS if on_gpu else min(max(machine.cores, least), most))
    context = min(footprint.trained, wishes.context or DEFAULT_CONTEXT)
    while room < context and wishes.context is None and context > LEAST_CONTEXT:
        context = max(context // 2, LEAST_CONTEXT)
    cells = max(room // 2, min(room, context))
    while cells < slots * context // _FILLED and wishes.slots is None and slots > 1:
        slots //= 2
    return slots, context, max(context, min((slots + 1) * context, cells))


def default_memory(machine: Machine, on_gpu: bool) -> int:
    """How many bytes models may take unless the owner says: a quarter, and 2 GiB at least, is left to everything
    else; half where there are no 4 GiB in all. Of the GPUs' memory a tenth is left."""
    if on_gpu and machine.gpus:
        return sum(gpu.memory for gpu in machine.gpus) * 9 // 10
    return machine.memory - min(max(machine.memory // 4, 2 * GIB), machine.memory // 2)


def read_machine() -> Machine:
    """Look at this machine. Whatever cannot be asked is not there."""
    return Machine(default_threads(), _memory(), _gpus(), backend())


def used_memory(machine: Machine, on_gpu: bool) -> int:
    """Bytes in use now: of this process, or of the GPUs by all processes; only differences mean something."""
    if on_gpu and machine.gpus:
        return sum(used for _, _, used in _nvidia())
    return int(psutil.Process().memory_info().rss)


def default_threads() -> int:
    """How many threads an engine should use: the physical cores this process may run on.

    Two threads on one core share its arithmetic units, and only slow matrix products down. Where the system
    does not tell its cores apart (only Linux does here), all of its processors count.
    """
    cores = {_core(cpu) for cpu in _allowed()}
    return max(1, min(len(cores), _processor_quota() or len(cores)))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _core(cpu: int) -> tuple[str, ...]:
    topology = _CPUS / f"cpu{cpu}" / "topology"
    with contextlib.suppress(OSError):
        return tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id"))
    return (str(cpu),)


def _processor_quota() -> int | None:
    """How many processors a container may keep busy: more threads would only wait for each other."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))  # "max" is no number: no quota
    return None


def _memory() -> int:
    """Main memory, or as much as a container has of it."""
    whole = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return min(whole, int((_CGROUP / name).read_text()))
    return whole


def _gpus() -> tuple[Gpu, ...]:
    return tuple(Gpu(name, memory) for name, memory, _ in _nvidia())


def is_visible(named: str | None, index: int, identifier: str) -> bool:
    """Whether CUDA may use a GPU, as CUDA_VISIBLE_DEVICES (None: not set) names those by number or identifier."""
    if named is None:
        return True
    names = [name.strip() for name in named.split(",")]
    return any(name == str(index) or (name.startswith("GPU-") and identifier.startswith(name)) for name in names)


def _nvidia() -> list[tuple[str, int, int]]:
    """NVIDIA's GPUs: name, memory in all, and in use; none where there is no driver or it does not tell."""
    found: list[tuple[str, int, int]] = []
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no library, no driver, no right: then there are none to be asked
        return found
    with contextlib.suppress(pynvml.NVMLError):
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if not is_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), index, str(pynvml.nvmlDeviceGetUUID(handle))):
                continue
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found.append((str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.used)))
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()
    return found
