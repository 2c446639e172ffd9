"""Readings of a real machine: this one."""

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from node.engine.load import Sensors, Use, share_of_others


@pytest.fixture
def sensors() -> Iterator[Sensors]:
    opened = Sensors()
    yield opened
    opened.close()


def burn(sensors: Sensors) -> float:
    """Read again and again, until the processors' clocks have moved on; the share of others."""
    while (cpu := sensors.read().cpu) is None:
        pass
    return cpu


def test_a_reading_is_a_share_of_the_machine(sensors: Sensors) -> None:
    assert 0 <= burn(sensors) <= 1


def test_what_the_machine_does_not_have_is_named() -> None:
    assert Use(0.5, None, None).missing == ("GPU", "battery")
    assert Use(0.5, 0.1, False).missing == ()


def test_own_processes_are_not_others() -> None:
    """The same time, with and without what a child of this process burned."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        mine, strangers = Sensors(), Sensors(own=dict)
        burned = psutil.Process(child.pid)
        until = burned.cpu_times().user + 0.2
        while burned.cpu_times().user < until:
            time.sleep(0.01)
        all_of_it, by_others = strangers.read().cpu, mine.read().cpu
    finally:
        child.kill()
        child.wait()

    assert all_of_it is not None
    assert by_others is not None
    assert by_others < all_of_it


@pytest.mark.parametrize(
    ("samples", "share"),
    [
        ([], 0.0),
        ([(1, 10, 30)], 0.0),
        ([(1, 10, 30), (2, 10, 40), (3, 10, 5)], 0.45),
        ([(2, 10, 90), (2, 20, 10)], 0.1),
        ([(2, 10, 4_000_000_000)], 0.0),
        ([(2, 10, 80), (3, 10, 80)], 1.0),
    ],
)
def test_the_newest_sample_of_each_other_process_counts(samples: list[tuple[int, int, int]], share: float) -> None:
    assert share_of_others(samples, own={1}) == pytest.approx(share)


def test_closing_twice_does_nothing(sensors: Sensors) -> None:
    sensors.close()
    sensors.close()
    assert sensors.read().gpu is None
