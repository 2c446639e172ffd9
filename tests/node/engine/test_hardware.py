"""What the machine has, and how engines are set up on it."""

import os

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from node.engine.hardware import (
    DEFAULT_CONTEXT,
    GIB,
    LEAST_CONTEXT,
    Gpu,
    Machine,
    Wishes,
    default_memory,
    default_threads,
    is_visible,
    plan,
    read_machine,
    used_memory,
)
from node.models.footprint import Footprint

SMALL = Machine(cores=2, memory=8 * GIB)
# 8 billion weights of 4.5 bits; 32 layers of 8 heads of 128 keys and values.
LLAMA_8B = Footprint(weights=4_700_000_000, cell=32 * 8 * 256, trained=131_072)

MEMORY = st.integers(2**20, 2**42)
MACHINES = st.builds(
    Machine,
    cores=st.integers(1, 256),
    memory=MEMORY,
    gpus=st.lists(st.builds(Gpu, st.just("a GPU"), MEMORY), max_size=4).map(tuple),
    backend=st.sampled_from(["cpu", "cuda", "metal"]),
)
FOOTPRINTS = st.builds(
    Footprint, weights=st.integers(2**20, 2**40), cell=st.integers(0, 2**20), trained=st.integers(256, 2**20)
)
NOT_WISHED = st.none()
WISHES = st.builds(
    Wishes,
    slots=NOT_WISHED | st.integers(1, 128),
    context=NOT_WISHED | st.integers(64, 2**20),
    threads=NOT_WISHED | st.integers(1, 1024),
    batch=NOT_WISHED | st.integers(16, 8_192),
    kv=NOT_WISHED | st.sampled_from(["f16", "q8_0"]),
    gpu_layers=NOT_WISHED | st.integers(-1, 100),
)


def test_there_is_a_thread_and_no_more_than_processors() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert machine.cores == default_threads()
    assert machine.memory > 2**20
    assert machine.backend
    assert used_memory(machine, on_gpu=False) > 2**20


@pytest.mark.parametrize(
    ("named", "visible"),
    [(None, True), ("", False), ("0", False), ("0, 1", True), ("GPU-ab", True), ("GPU-cd,1", True), ("GPU-cd", False)],
)
def test_gpus_that_the_process_may_not_use_do_not_count(named: str | None, visible: bool) -> None:
    assert is_visible(named, 1, "GPU-abcd") is visible


def test_a_small_machine_runs_four_jobs_of_a_small_model() -> None:
    small = plan(SMALL, Footprint(300 * 2**20, 16 * 1024, 32_768), Wishes(), default_memory(SMALL, on_gpu=False))
    assert (small.slots, small.context, small.threads, small.kv, small.gpu_layers) == (4, 8_192, 2, "f16", 0)


def test_where_memory_is_short_jobs_share_it_before_the_context_gets_smaller() -> None:
    tight = plan(SMALL, LLAMA_8B, Wishes(), default_memory(SMALL, on_gpu=False))
    assert (tight.slots, tight.context) == (4, 8_192)
    assert 8_192 <= tight.cells < 4 * 8_192
    least = plan(SMALL, LLAMA_8B, Wishes(), LLAMA_8B.bytes(3_000, "f16"))
    assert (least.slots, least.context, least.cells) == (4, 2_048, 2_048)


def test_gpus_take_more_jobs_and_their_own_memory_counts() -> None:
    machine = Machine(16, 64 * GIB, (Gpu("H100", 80 * GIB),), "cuda")
    assert default_memory(machine, on_gpu=True) == 72 * GIB
    chosen = plan(machine, LLAMA_8B, Wishes(), default_memory(machine, on_gpu=True))
    assert (chosen.slots, chosen.gpu_layers, chosen.cells) == (32, -1, 33 * DEFAULT_CONTEXT)
    on_cpu = plan(machine, LLAMA_8B, Wishes(gpu_layers=0), default_memory(machine, on_gpu=False))
    assert on_cpu.slots == 16


def test_a_smaller_kv_cache_leaves_room_for_more() -> None:
    f16, q8 = (plan(SMALL, LLAMA_8B, Wishes(kv=kv), 6 * GIB) for kv in ("f16", "q8_0"))
    assert q8.cells > f16.cells
    assert q8.kv == "q8_0"


@given(MACHINES, FOOTPRINTS, WISHES, MEMORY)
def test_a_plan_is_one_that_an_engine_can_be_loaded_with(
    machine: Machine, footprint: Footprint, wishes: Wishes, allowed: int
) -> None:
    chosen = plan(machine, footprint, wishes, allowed)
    assert 1 <= chosen.slots <= 128
    assert 1 <= chosen.context <= footprint.trained
    assert chosen.context <= chosen.cells <= (chosen.slots + 1) * chosen.context
    assert 1 <= chosen.batch <= chosen.context
    assert chosen.threads >= 1
    assert chosen.bytes == footprint.bytes(chosen.cells + chosen.kept, chosen.kv)


@given(MACHINES, FOOTPRINTS, WISHES, MEMORY)
def test_what_the_owner_wishes_stands(machine: Machine, footprint: Footprint, wishes: Wishes, allowed: int) -> None:
    chosen = plan(machine, footprint, wishes, allowed)
    assert wishes.slots in (None, chosen.slots)
    assert wishes.context is None or chosen.context == min(wishes.context, footprint.trained)
    assert wishes.threads in (None, chosen.threads)
    assert wishes.batch is None or chosen.batch == min(wishes.batch, chosen.context)
    assert wishes.kv in (None, chosen.kv)
    assert wishes.gpu_layers in (None, chosen.gpu_layers)


@given(MACHINES, FOOTPRINTS, MEMORY)
def test_a_plan_keeps_to_the_memory_wherever_one_short_conversation_fits(
    machine: Machine, footprint: Footprint, allowed: int
) -> None:
    assume(footprint.bytes(min(LEAST_CONTEXT, footprint.trained), "f16") <= allowed)
    assert plan(machine, footprint, Wishes(), allowed).bytes <= allowed


@given(MACHINES, FOOTPRINTS, WISHES, MEMORY, MEMORY)
def test_more_memory_never_makes_it_worse(
    machine: Machine, footprint: Footprint, wishes: Wishes, allowed: int, more: int
) -> None:
    before, after = (plan(machine, footprint, wishes, most) for most in (allowed, allowed + more))
    assert after.context >= before.context
    assert after.cells >= before.cells


@given(MACHINES, st.booleans())
def test_the_default_memory_leaves_some_to_others(machine: Machine, on_gpu: bool) -> None:
    whole = sum(gpu.memory for gpu in machine.gpus) if on_gpu and machine.gpus else machine.memory
    assert 0 < default_memory(machine, on_gpu) < whole


@given(FOOTPRINTS, MEMORY, st.sampled_from(["f16", "q8_0"]))
def test_what_is_said_to_fit_does_and_one_more_does_not(footprint: Footprint, most: int, kv: str) -> None:
    room = footprint.room(most, kv)
    assert room == 0 or footprint.bytes(room, kv) <= most
    if footprint.cell:
        assert footprint.bytes(room + 2, kv) > most
