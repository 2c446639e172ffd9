"""Weights in memory and the computation of logits with them, by llama.cpp."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from node.models.llama import LlamaClosed, library, load
from node.models.vocab import Vocab

KvType = Literal["f16", "q8_0"]  # of the KV caches that nodes offer, and calibrate
CacheType = KvType | Literal["q4_0"]
State = NDArray[np.uint8]
_KV_TYPES: Final[dict[CacheType, int]] = {"f16": 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type
_FLASH_ATTENTION_ON: Final = 1  # llama.cpp reads a quantized value cache only so
MAX_SEQUENCES: Final = 256  # LLAMA_MAX_SEQ
_NO_OUTPUT: Final = -100  # not one of llama_decode's codes: it said that all went well, and has no logits


class DecodeFailed(RuntimeError):
    """llama.cpp could not compute a batch; `code` is llama_decode's (1: no room in the KV cache)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}; try a smaller context or free some memory")
        self.code = code


class Model:
    """Weights in memory. Closing it closes its contexts and its vocabulary."""

    def __init__(self, path: Path, *, gpu_layers: int = -1) -> None:
        """Raises BadModelFile, OSError. `gpu_layers`: how many go to a GPU, if the build uses one; -1 all."""
        self._handle = load(path, vocab_only=False, gpu_layers=gpu_layers)
        self.vocab = Vocab(self._handle)
        with self._handle.use() as model:
            self.trained_context: int = library().llama_model_n_ctx_train(model)

    def context(
        self,
        *,
        tokens: int,
        batch: int,
        threads: int,
        kv: CacheType = "f16",
        sequences: int = 1,
        rows: int | None = None,
        batch_threads: int | None = None,
        shared: bool = False,
    ) -> "Context":
        """Room for `sequences` that hold `tokens` each, or, `shared`, all together; computed in batches of at most
        `batch` tokens with the logits of at most `rows` of them. `threads` compute the batches of one token,
        `batch_threads` (as many unless told) the larger ones. What is shared takes less memory and more time: each
        token is compared with the cells of all.

        Raises LlamaClosed, MemoryError, ValueError.
        """
        rows = max(min(rows or batch, batch), min(sequences, batch))
        if not (0 < sequences <= MAX_SEQUENCES and batch > 0 and tokens > 0):
            raise ValueError(f"{sequences} sequences of {tokens} tokens in batches of {batch} cannot be")
        with self._handle.use() as model:
            cells = tokens if shared else sequences * tokens
            settings = _settings(cells, batch, threads, batch_threads or threads)
            settings.n_seq_max, settings.n_outputs_max, settings.kv_unified = sequences, max(rows, sequences), shared
            settings.type_k = settings.type_v = _KV_TYPES[kv]
            if kv != "f16":
                settings.flash_attn_type = _FLASH_ATTENTION_ON
            opened = Context(_opened(model, settings, cells), self.vocab.size, tokens, batch, sequences, rows, shared)
            self._handle.keep(opened)
        return opened

    def embedder(self, *, tokens: int, whole: int, threads: int, rows: int) -> "Embedder":
        """Room for one input of up to `tokens`, computed `rows` at a time; of a model that pools by itself, and so
        takes its inputs only whole, up to `whole` of them. Raises LlamaClosed, MemoryError.
        """
        llama = library()
        with self._handle.use() as model:
            pools = _pools(model)
            tokens = min(tokens, whole) if pools else tokens
            batch = tokens if pools else min(rows, tokens)
            settings = _settings(tokens, batch, threads, threads)
            settings.n_seq_max, settings.embeddings = 1, True
            opened = Embedder(_opened(model, settings, tokens), int(llama.llama_model_n_embd_out(model)), tokens, batch)
            self._handle.keep(opened)
        return opened

    def close(self) -> None:
        """Free everything; again does nothing. No other thread may be using a context of it."""
        self._handle.close()


@frozen
class Run:
    """Ids that stand one after the other in a sequence, the first at `position`; the logits of the last `wanted`."""

    ids: Sequence[int]
    position: int
    sequence: int
    wanted: int


class _Computing:
    """A llama_context with its memory, and the batch that goes into it."""

    def __init__(self, pointer: Any, batch: int) -> None:
        self._pointer = pointer
        self._memory = library().llama_get_memory(pointer)
        self._inputs = _Inputs(batch)

    def close(self) -> None:
        """Free the memory; again does nothing."""
        if self._pointer is None:
            return
        pointer, self._pointer = self._pointer, None
        self._inputs.free()
        library().llama_free(pointer)

    def _open(self) -> Any:
        if self._pointer is None:
            raise LlamaClosed("this context is closed; open it again")
        return self._pointer


class Context(_Computing):
    """The KV cache of many sequences, `shared` or apart, and the computation over it. Of one thread at a time."""

    def __init__(
        self, pointer: Any, vocabulary: int, tokens: int, batch: int, sequences: int, rows: int, shared: bool
    ) -> None:
        super().__init__(pointer, batch)
        self.tokens, self.batch, self.sequences, self.rows, self.shared = tokens, batch, sequences, rows, shared
        self._vocabulary = vocabulary
        self._decode, self._found = library().llama_decode, library().llama_get_logits
        self._seen: tuple[int, int] = (0, 0)  # where the logits were last and how many rows; their view is kept
        self._logits: NDArray[np.float32] = np.empty((0, vocabulary), np.float32)

    def decode(self, ids: Sequence[int], position: int, rows: int, sequence: int = 0) -> NDArray[np.float32]:
        """Compute up to `batch` ids of one sequence that stand at `position` and after; own copy of the logits of
        the last `rows`, (rows, vocabulary). Raises as `compute`.
        """
        return self.compute([Run(ids, position, sequence, rows)]).copy()

    def compute(self, runs: Sequence[Run]) -> NDArray[np.float32]:
        """Compute the runs in one batch: the wanted logits in the order of the runs, (rows, vocabulary).

        They are llama.cpp's own memory: may be written to, and hold until the next call. Ids must be inside the
        vocabulary, and each run must begin where its sequence ends. Raises DecodeFailed, LlamaClosed, ValueError.
        """
        pointer = self._open()
        rows = self._check(runs)
        self._inputs.fill(runs)
        code = self._decode(pointer, self._inputs.batch)
        if code != 0:
            raise DecodeFailed(code)
        if rows == 0:
            library().llama_synchronize(pointer)
            return np.empty((0, self._vocabulary), np.float32)
        found = self._found(pointer)
        if not found:
            raise DecodeFailed(_NO_OUTPUT)
        seen = ctypes.addressof(found.contents), rows
        if seen != self._seen:
            self._seen, self._logits = seen, np.ctypeslib.as_array(found, (rows, self._vocabulary))
        return self._logits

    def _check(self, runs: Sequence[Run]) -> int:
        """How many rows of logits are wanted."""
        count = rows = 0
        for run in runs:
            size = len(run.ids)
            if not (size > 0 and 0 <= run.wanted <= size and 0 <= run.position <= self.tokens - size):
                raise ValueError(
                    f"{size} ids at position {run.position} do not fit batch {self.batch}, context {self.tokens}"
                )
            if not 0 <= run.sequence < self.sequences:
                raise ValueError(f"sequence {run.sequence} is not one of {self.sequences}")
            count, rows = count + size, rows + run.wanted
        if not (0 < count <= self.batch and rows <= self.rows):
            raise ValueError(f"{count} ids and {rows} rows do not fit batch {self.batch}, rows {self.rows}")
        return rows

    def save(self, sequence: int) -> State:
        """What the cache holds of a sequence, as bytes for `restore`. Raises LlamaClosed, MemoryError."""
        pointer, llama = self._open(), library()
        state = np.empty(llama.llama_state_seq_get_size(pointer, sequence), np.uint8)
        room = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return state[: llama.llama_state_seq_get_data(pointer, room, state.size, sequence)]

    def restore(self, sequence: int, state: State) -> bool:
        """Let an empty sequence hold what was saved, of another or of itself; false where there is no room for it.
        Raises LlamaClosed.
        """
        pointer = self._open()
        source = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(library().llama_state_seq_set_data(pointer, source, state.size, sequence))

    def remove(self, sequence: int, position: int = 0) -> bool:
        """Forget a sequence from `position` on; false where the model's memory cannot be cut there: then nothing was
        done. From 0 on always succeeds. Raises LlamaClosed.
        """
        self._open()
        return bool(library().llama_memory_seq_rm(self._memory, sequence, position or -1, -1))

    def extent(self, sequence: int) -> tuple[int, int]:
        """The first and last positions that are still held of a sequence; (-1, -1) if none. Raises LlamaClosed."""
        self._open()
        llama = library()
        first = llama.llama_memory_seq_pos_min(self._memory, sequence)
        return int(first), int(llama.llama_memory_seq_pos_max(self._memory, sequence))

    def clear(self) -> None:
        """Forget all sequences, so that the next ones can tell nothing from them. Raises LlamaClosed."""
        self._open()
        library().llama_memory_clear(self._memory, True)


class Embedder(_Computing):
    """Vectors of whole inputs, one at a time. Of one thread at a time."""

    def __init__(self, pointer: Any, width: int, tokens: int, batch: int) -> None:
        super().__init__(pointer, batch)
        self.width, self.tokens, self.batch = width, tokens, batch
        self.pools: bool = library().llama_pooling_type(pointer) != 0

    def begin(self) -> None:
        """Forget the input before. Raises LlamaClosed."""
        self._open()
        if self._memory:  # an encoder has none
            library().llama_memory_clear(self._memory, True)

    def add(self, ids: Sequence[int], position: int) -> NDArray[np.float64]:
        """Compute the next up to `batch` ids of the input: the sum of their vectors (width,), or, of a model that
        pools by itself and so takes its input whole, its vector. Raises DecodeFailed, LlamaClosed, ValueError.
        """
        pointer, llama = self._open(), library()
        if not (0 < len(ids) <= self.batch and 0 <= position <= self.tokens - len(ids)):
            raise ValueError(f"{len(ids)} ids at {position} do not fit batch {self.batch}, context {self.tokens}")
        self._inputs.fill([Run(ids, position, 0, len(ids))])
        code = llama.llama_decode(pointer, self._inputs.batch)
        if code != 0:
            raise DecodeFailed(code)
        if self.pools:
            found, shape = llama.llama_get_embeddings_seq(pointer, 0), (1, self.width)
        else:
            found, shape = llama.llama_get_embeddings(pointer), (len(ids), self.width)
        if not found:
            raise DecodeFailed(_NO_OUTPUT)
        vectors: NDArray[np.float32] = np.ctypeslib.as_array(found, shape)
        total: NDArray[np.float64] = vectors.sum(axis=0, dtype=np.float64)
        return total


class _Inputs:
    """A llama_batch, written through numpy views of its arrays."""

    def __init__(self, size: int) -> None:
        self.batch = library().llama_batch_init(size, 0, 1)
        self._ids: NDArray[np.int32] = np.ctypeslib.as_array(self.batch.token, (size,))
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(self.batch.pos, (size,))
        self._wanted: NDArray[np.int8] = np.ctypeslib.as_array(self.batch.logits, (size,))
        np.ctypeslib.as_array(self.batch.n_seq_id, (size,))[:] = 1
        # Each row has an array of sequences of its own, of one here: all are pointed at one table instead.
        self._sequences = (ctypes.c_int32 * size)()
        self._own = [ctypes.cast(self.batch.seq_id[row], ctypes.c_void_p).value for row in range(size)]
        self._pointers: NDArray[np.uintp] = np.ctypeslib.as_array(
            ctypes.cast(self.batch.seq_id, ctypes.POINTER(ctypes.c_size_t)), (size,)
        )
        first = ctypes.addressof(self._sequences)
        self._pointers[:] = first + 4 * np.arange(size, dtype=np.uintp)
        self._table: NDArray[np.int32] = np.ctypeslib.as_array(self._sequences)

    def fill(self, runs: Sequence[Run]) -> None:
        """Write the runs, which must fit."""
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        for run in runs:
            size = len(run.ids)
            ids += run.ids
            positions += range(run.position, run.position + size)
            sequences += [run.sequence] * size
            wanted += [0] * (size - run.wanted) + [1] * run.wanted
        count = len(ids)
        self._ids[:count], self._positions[:count] = ids, positions
        self._table[:count], self._wanted[:count] = sequences, wanted
        self.batch.n_tokens = count

    def free(self) -> None:
        self._pointers[:] = np.array(self._own, np.uintp)  # llama.cpp frees what it allocated
        del self._ids, self._positions, self._wanted, self._pointers
        library().llama_batch_free(self.batch)


def _settings(tokens: int, batch: int, threads: int, batch_threads: int) -> Any:
    settings = library().llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = tokens, batch, batch
    settings.n_threads, settings.n_threads_batch = threads, batch_threads
    settings.no_perf = True
    return settings


def _opened(model: int, settings: Any, tokens: int) -> Any:
    pointer = library().llama_init_from_model(model, settings)
    if not pointer:
        raise MemoryError(f"no room for a context of {tokens} tokens; choose a smaller one")
    return pointer


def _pools(model: int) -> bool:
    """Whether the model's file says how its tokens' vectors become one."""
    llama = library()
    value = ctypes.create_string_buffer(64)
    architecture = ctypes.create_string_buffer(64)
    if llama.llama_model_meta_val_str(model, b"general.architecture", architecture, 64) < 0:
        return False
    found = llama.llama_model_meta_val_str(model, architecture.value + b".pooling_type", value, 64)
    return found > 0 and value.value not in (b"", b"0")
