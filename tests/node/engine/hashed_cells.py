"""A KV cache without a model: keeps to llama.cpp's rules and says where they are broken; its logits are a hash of all
the ids that the sequence holds, so that a sequence mixed up with another shows at once."""

from collections.abc import Sequence
from hashlib import shake_256

import numpy as np

from ledger.records import Sampling
from node.engine.port import Rows
from node.models.weights import DecodeFailed, Run
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
    """`Cells`, with the same cell shared by the sequences that were copied from one another."""

    def __init__(self, tokens: int, batch: int, sequences: int, rows: int, *, cuttable: bool = True) -> None:
        """Without `cuttable` a sequence is a state, as of recurrent models: only forgotten as a whole."""
        self.tokens, self.batch, self.sequences, self.rows = tokens, batch, sequences, rows
        self.cuttable = cuttable
        self.held: dict[int, list[tuple[int, int]]] = {}  # sequence to (cell, id) by position
        self.batches: list[list[Run]] = []
        self.failing: dict[int, int] = {}  # sequence to the code with which its batches fail
        self.poisoned: set[int] = set()  # sequences whose logits are not numbers
        self._cells = 0

    @property
    def used(self) -> int:
        """Cells that hold anything."""
        return len({cell for row in self.held.values() for cell, _ in row})

    def ids(self, sequence: int) -> list[int]:
        return [token for _, token in self.held.get(sequence, [])]

    def compute(self, runs: Sequence[Run]) -> Rows:
        assert 0 < sum(len(run.ids) for run in runs) <= self.batch
        assert sum(run.wanted for run in runs) <= self.rows
        assert len({run.sequence for run in runs}) == len(runs)
        for run in runs:
            assert 0 <= run.sequence < self.sequences
            assert run.position == len(self.held.get(run.sequence, []))
        if self.used + sum(len(run.ids) for run in runs) > self.tokens:
            raise DecodeFailed(1)
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
            self._cells += 1
            row.append((self._cells, token))
            found.append(logits_of([token for _, token in row]))
        if run.sequence in self.poisoned:
            found = [np.full(VOCABULARY, np.nan, np.float32) for _ in found]
        return found[len(found) - run.wanted :]

    def copy(self, source: int, target: int, tokens: int) -> None:
        assert not self.held.get(target)
        assert tokens <= len(self.held[source])
        assert self.cuttable or tokens == len(self.held[source])
        self.held[target] = self.held[source][:tokens]

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
