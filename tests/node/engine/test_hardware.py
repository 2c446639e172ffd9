"""The default number of threads."""

import os

from node.engine.hardware import default_threads


def test_there_is_a_thread_and_no_more_than_processors() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
