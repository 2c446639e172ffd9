"""A KV cache without a model: keeps to llama.cpp's rules and says where they are broken; its logits are a hash of all
the ids that the sequence holds, so that a sequence mixed up with another shows at once. A saved state is its ids."""

from collections.abc import Sequence
from hashlib import shake_256

import numpy as np

from ledger.records import Sampling
from node.engine.port import Rows
from node.models.weights import DecodeFailed, Run, State
from verify.sampler import sample

VOCABULARY = 16


def logits_of(ids: Sequence[int]) -> Rows:
    """The logits (VOCABULARY,) behind these ids."""
    raw = shake_256(bytes(ids)).digest(4 * VOCABULARY)
    return (np.frombuffer(raw, "<u4") * (8.0 / 2**32)).astype(np.float32)


def answer_alone(prompt: Sequence[int], sampling: Sampling, seed: int, most: int, eog: frozenset[int]) -> list[int]:
    """What a job has to give, whatever else is computed."""
    ids = list(prompt)
    for _ in range(most):
        ids.append(sample(logits_of(ids), sampling, seed, len(ids)))
        if ids[-1] in eog:
            break
    return ids[len(prompt) :]


class HashedCells:
    """`Cells`, of each sequence apart or `shared` by all."""

    def __init__(
        self, tokens: int, batch: int, sequences: int, rows: int, *, cuttable: bool = True, shared: bool = True
    ) -> None:
        """Without `cuttable` a sequence is a state, as of recurrent models: only forgotten as a whole."""
        self.tokens, self.batch, self.sequences, self.rows = tokens, batch, sequences, rows
        self.cuttable, self.shared = cuttable, shared
        self.held: dict[int, list[int]] = {}  # ids by sequence
        self.batches: list[list[Run]] = []
        self.failing: dict[int, int] = {}  # sequence to the code with which its batches fail
        self.poisoned: set[int] = set()  # sequences whose logits are not numbers

    @property
    def used(self) -> int:
        """Cells that hold anything."""
        return sum(len(row) for row in self.held.values())

    def ids(self, sequence: int) -> list[int]:
        return self.held.get(sequence, [])

    def compute(self, runs: Sequence[Run]) -> Rows:
        assert 0 < sum(len(run.ids) for run in runs) <= self.batch
        assert sum(run.wanted for run in runs) <= self.rows
        assert len({run.sequence for run in runs}) == len(runs)
        for run in runs:
            assert 0 <= run.sequence < self.sequences
            assert run.position == len(self.held.get(run.sequence, []))
        if self.shared and self.used + sum(len(run.ids) for run in runs) > self.tokens:
            raise DecodeFailed(1)
        if not self.shared:
            assert [run.sequence for run in runs] == sorted(run.sequence for run in runs)
            assert all(run.position + len(run.ids) <= self.tokens for run in runs)
        self.batches.append(list(runs))
        rows = [row for run in runs for row in self._compute(run)]
        for run in runs:
            if run.sequence in self.failing:
                raise DecodeFailed(self.failing[run.sequence])
        return np.stack(rows) if rows else np.empty((0, VOCABULARY), np.float32)

    def _compute(self, run: Run) -> list[Rows]:
        row = self.held.setdefault(run.sequence, [])
        found = []
        for token in run.ids:
            row.append(token)
            found.append(logits_of(row))
        if run.sequence in self.poisoned:
            found = [np.full(VOCABULARY, np.nan, np.float32) for _ in found]
        return found[len(found) - run.wanted :]

    def save(self, sequence: int) -> State:
        return np.array(self.held.get(sequence, []), np.uint8)

    def restore(self, sequence: int, state: State) -> bool:
        assert not self.held.get(sequence)
        if self.shared and self.used + state.size > self.tokens:
            return False
        self.held[sequence] = state.tolist()
        return True

    def remove(self, sequence: int, position: int = 0) -> bool:
        row = self.held.get(sequence, [])
        if position == 0:
            self.held.pop(sequence, None)
            return True
        if position < len(row):
            if not self.cuttable:
                return False
            self.held[sequence] = row[:position]
        return True

    def extent(self, sequence: int) -> tuple[int, int]:
        last = len(self.held.get(sequence, [])) - 1
        return (0 if self.cuttable else last) if last >= 0 else -1, last

    def clear(self) -> None:
        self.held.clear()
