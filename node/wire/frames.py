"""The stream of an answer, sans-I/O.

Theory of operation. An answer is a CBOR sequence (RFC 8742) of byte strings: first the secretstream's header, then one
encrypted frame each. A frame's plaintext is a CBOR array of a number and a byte string:

    [0, ids]         the next token ids, 4 bytes each, little-endian; none = the seller is still at it
    [1, checkpoint]  a signed Checkpoint, at least every 64 tokens
    [2, receipt]     the signed Receipt; carries the final tag and ends the answer
    [3, cancel]      the seller's signed Cancel: it stops here; carries the final tag and ends the answer
    [4, score]       the signed Score of a score order: once, before the receipt, and no ids but empty ones around it

Bytes may arrive in any pieces. A stream that ends before the final tag was cut, and `AnswerReader.close` says so.
"""

from collections.abc import Iterator
from typing import Final

from attrs import frozen

from ledger import codec
from ledger.commitments import ids_bytes, ids_from_bytes
from node.wire.sealing import HEADER_BYTES, CannotOpen, OpeningStream, SealingStream

MAX_FRAME: Final = 65_536
_IDS, _CHECKPOINT, _RECEIPT, _CANCEL, _SCORE = range(5)
_FRAME_ITEMS: Final = 3  # the array, the number, the byte string


class StreamError(ValueError):
    """The seller's stream breaks the protocol; nothing after this point can be trusted."""


class StreamCut(StreamError):
    """The stream ended before its final tag."""

    def __init__(self) -> None:
        super().__init__("the seller's stream was cut before its end")


@frozen
class Ids:
    """The next token ids of the answer; empty as a sign of life."""

    ids: tuple[int, ...]


@frozen
class CheckpointFrame:
    """A Checkpoint as it came, not yet checked."""

    raw: bytes


@frozen
class ReceiptFrame:
    """The Receipt as it came, not yet checked; nothing follows."""

    raw: bytes


@frozen
class CancelFrame:
    """The seller's Cancel as it came, not yet checked; nothing follows."""

    raw: bytes


@frozen
class ScoreFrame:
    """A Score as it came, not yet checked."""

    raw: bytes


Frame = Ids | CheckpointFrame | ReceiptFrame | CancelFrame | ScoreFrame


class AnswerWriter:
    """Turns an answer's frames into bytes for the wire; the first bytes it gives hold the stream's header."""

    def __init__(self, key: bytes) -> None:
        self._stream = SealingStream(key)
        self._header: bytes = codec.encode(self._stream.header)

    def write(self, frame: Frame) -> bytes:
        """The bytes of the next frame."""
        match frame:
            case Ids(ids):
                kind, body, final = _IDS, ids_bytes(ids), False
            case CheckpointFrame(raw):
                kind, body, final = _CHECKPOINT, raw, False
            case ReceiptFrame(raw):
                kind, body, final = _RECEIPT, raw, True
            case CancelFrame(raw):
                kind, body, final = _CANCEL, raw, True
            case ScoreFrame(raw):
                kind, body, final = _SCORE, raw, False
        header, self._header = self._header, b""
        return header + codec.encode(self._stream.push(codec.encode([kind, body]), final))


class AnswerReader:
    """Turns bytes from the wire into frames. After an error it gives nothing more, after the last frame only errors."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._buffer = bytearray()
        self._stream: OpeningStream | None = None
        self._broken: StreamError | None = None
        self.finished = False

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Take what arrived; give the frames that are complete. Raises StreamError, after the frames before it."""
        self._buffer += received
        return self._frames()

    def close(self) -> None:
        """Say that nothing more comes. Raises StreamCut if the answer had not ended."""
        if not self.finished:
            raise StreamCut

    def _frames(self) -> Iterator[Frame]:
        try:
            while (item := self._next_item()) is not None:
                if self._stream is None:
                    self._stream = self._open(item)
                else:
                    yield self._decrypt(self._stream, item)
        except StreamError as error:
            self._broken = error
            raise

    def _open(self, header: bytes) -> OpeningStream:
        if len(header) != HEADER_BYTES:
            raise StreamError("the seller's stream does not begin with a secretstream header")
        return OpeningStream(self._key, header)

    def _decrypt(self, stream: OpeningStream, item: bytes) -> Frame:
        try:
            plain, final = stream.pull(item)
        except CannotOpen as error:
            raise StreamError(f"a frame of the stream cannot be opened: {error}") from None
        frame = _parse(plain, final)
        self.finished = final
        return frame

    def _next_item(self) -> bytes | None:
        """The next complete byte string, taken out of the buffer."""
        if self._broken is not None:
            raise self._broken
        if not self._buffer:
            return None
        if self.finished:
            raise StreamError("the seller's stream goes on after its end")
        head = _head_size(self._buffer[0])
        if len(self._buffer) < 1 + head:
            return None
        size = int.from_bytes(self._buffer[1 : 1 + head], "big") if head else self._buffer[0] & 0x1F
        if size > MAX_FRAME:
            raise StreamError(f"a frame of {size} bytes, where at most {MAX_FRAME} are allowed")
        end = 1 + head + size
        if len(self._buffer) < end:
            return None
        item = bytes(self._buffer[1 + head : end])
        if codec.encode(item)[: 1 + head] != self._buffer[: 1 + head]:
            raise StreamError("a frame's length is not written in its shortest form")
        del self._buffer[:end]
        return item


def _head_size(initial: int) -> int:
    """How many bytes of length follow the initial byte of a definite byte string (RFC 8949, 3)."""
    major, extra = initial >> 5, initial & 0x1F
    if major != 2 or extra > 26:
        raise StreamError("the stream is not a CBOR sequence of byte strings")
    return 0 if extra < 24 else 1 << (extra - 24)


def _parse(plain: bytes, final: bool) -> Frame:
    try:
        match codec.decode(plain, MAX_FRAME, _FRAME_ITEMS):
            case [int(kind), bytes(body)] if type(kind) is int:  # False equals 0
                return _frame(kind, body, final)
    except StreamError:
        raise
    except ValueError as error:
        raise StreamError(f"a frame of the stream is malformed: {error}") from None
    raise StreamError("a frame of the stream is no number and byte string")


def _frame(kind: int, body: bytes, final: bool) -> Frame:
    match kind, final:
        case 0, False:
            return Ids(ids_from_bytes(body))
        case 1, False:
            return CheckpointFrame(body)
        case 2, True:
            return ReceiptFrame(body)
        case 3, True:
            return CancelFrame(body)
        case 4, False:
            return ScoreFrame(body)
    raise StreamError("a frame of an unknown kind, or a final tag in the wrong place")
