"""Honest answers as a file, so that a machine can calibrate against the engine of another one of the same owner.

Lines of JSON: first what made them, {"format", "model", "sellers"}; then an answer a line, {"seller", "prompt",
"sampling", "seed", "answer"}, with the seller's place in that list and ids as numbers. Every line is checked where it
is read: such a file may come from anywhere, but whoever uses it says that its answers are honest.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from attrs import astuple, frozen

from ledger.records import Fingerprint
from node.engine.calibration import ANSWER_TOKENS, KV_TYPES, SAMPLINGS, Answered
from node.engine.port import Job
from verify.calibration import engine_words

FORMAT: Final = "idlemesh honest answers 1"
MAX_ANSWERS: Final = 1_000_000
_MAX_LINE: Final = 65_536
_MAX_PROMPT: Final = 4_096
_MAX_ID: Final = 2**31
_MAX_SEED: Final = 2**64


class BadRecording(ValueError):
    """A file that holds no honest answers of this model."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}; make it on the other machine with `idlemesh calibrate MODEL --record FILE`")
        self.why = why


class Recorder:
    """Writes a recording; it is there, whole up to its last round, once it is closed."""

    def __init__(self, path: Path, model: bytes, sellers: Sequence[Fingerprint]) -> None:
        """Raises OSError."""
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._sellers = list(sellers)
        self._file = self._partial.open("w")
        self._line({"format": FORMAT, "model": model.hex(), "sellers": [engine_words(one) for one in sellers]})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.replace(self._path)

    def add(self, answers: Sequence[Answered]) -> None:
        """Write the answers of a round. Raises OSError."""
        for one in answers:
            self._line(
                {
                    "seller": self._sellers.index(one.seller),
                    "prompt": one.job.prompt,
                    "sampling": astuple(one.job.sampling),
                    "seed": one.job.seed,
                    "answer": one.answer,
                }
            )
        self._file.flush()

    def _line(self, body: dict[str, Any]) -> None:
        self._file.write(json.dumps(body, separators=(",", ":")) + "\n")


@frozen
class Recording:
    """What a file says of itself, and how many answers it has."""

    path: Path
    sellers: tuple[Fingerprint, ...]
    answers: int

    def read(self) -> Iterator[Answered]:
        """The answers in their order. Raises BadRecording."""
        lines = _lines(self.path)
        next(lines)
        for line in lines:
            yield _answered(self.path, line, self.sellers)


def open_recording(path: Path, model: bytes) -> Recording:
    """Look through a whole file for whether it holds answers of this model. Raises BadRecording."""
    lines = _lines(path)
    sellers = _sellers(path, next(lines, None), model)
    answers = 0
    for line in lines:
        _answered(path, line, sellers)
        answers += 1
        if answers > MAX_ANSWERS:
            raise BadRecording(path, f"it has more than {MAX_ANSWERS:,} answers")
    if not answers:
        raise BadRecording(path, "it has no answers")
    return Recording(path, sellers, answers)


def _lines(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE + 1):
                if len(line) > _MAX_LINE:
                    raise BadRecording(path, f"it has a line of more than {_MAX_LINE} bytes")
                yield json.loads(line)
    except OSError as error:
        raise BadRecording(path, f"it cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise BadRecording(path, "it is no lines of JSON") from None


def _sellers(path: Path, head: Any, model: bytes) -> tuple[Fingerprint, ...]:
    match head:
        case {"format": str(said), "model": str(digest), "sellers": list(sellers)} if said == FORMAT:
            if digest != model.hex():
                raise BadRecording(path, f"its answers are of another model, {digest[:16]}")
            if 0 < len(sellers) <= len(KV_TYPES):
                return tuple(_fingerprint(path, one) for one in sellers)
    raise BadRecording(path, "it does not begin as a recording of answers does")


def _fingerprint(path: Path, body: Any) -> Fingerprint:
    match body:
        case {"build": str(build), "backend": str(backend), "kv": str(kv), "sampler": str(sampler)}:
            try:
                return Fingerprint(build, backend, kv, sampler)
            except ValueError as error:
                raise BadRecording(path, f"an engine's {error}") from None
    raise BadRecording(path, "it does not say which engines made it")


def _answered(path: Path, body: Any, sellers: Sequence[Fingerprint]) -> Answered:
    match body:
        case {
            "seller": int(seller),
            "prompt": list(prompt),
            "sampling": [int(), int(), int(), int()] as said,
            "seed": int(seed),
            "answer": list(answer),
        }:
            sampling = next((one for one in SAMPLINGS if list(astuple(one)) == said), None)
            numbers = all(type(one) is int and 0 <= one < _MAX_ID for one in (*prompt, *answer))
            sizes = 0 < len(prompt) <= _MAX_PROMPT and 0 < len(answer) <= ANSWER_TOKENS
            if sampling and numbers and sizes and 0 <= seed < _MAX_SEED and 0 <= seller < len(sellers):
                return Answered(sellers[seller], Job(tuple(prompt), sampling, seed, ANSWER_TOKENS), tuple(answer))
    raise BadRecording(path, "one of its lines is no answer")
