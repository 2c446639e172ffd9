"""Weights in memory and the computation of logits with them, by llama.cpp."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from node.models.llama import LlamaClosed, library, load
from node.models.vocab import Vocab

KvType = Literal["f16", "q8_0"]
_KV_TYPES: Final[dict[KvType, int]] = {"f16": 1, "q8_0": 8}  # enum ggml_type
_FLASH_ATTENTION_ON: Final = 1  # llama.cpp reads a quantized value cache only so


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

    def context(self, *, tokens: int, batch: int, threads: int, kv: KvType = "f16") -> "Context":
        """Room for one sequence of `tokens`, computed in batches of at most `batch`. Raises LlamaClosed,
        MemoryError.
        """
        with self._handle.use() as model:
            opened = Context(model, self.vocab.size, tokens, batch, threads, kv)
            self._handle.keep(opened)
        return opened

    def close(self) -> None:
        """Free everything; again does nothing. No other thread may be using a context of it."""
        self._handle.close()


class Context:
    """One sequence's KV cache and the computation over it. Of one thread at a time."""

    def __init__(self, model: int, vocabulary: int, tokens: int, batch: int, threads: int, kv: KvType) -> None:
        llama = library()
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = tokens, batch, batch, 1
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = _KV_TYPES[kv]
        settings.no_perf = True
        if kv != "f16":
            settings.flash_attn_type = _FLASH_ATTENTION_ON
        self._pointer = llama.llama_init_from_model(model, settings)
        if not self._pointer:
            raise MemoryError(f"no room for a context of {tokens} tokens; choose a smaller one")
        self.tokens, self.batch, self._vocabulary = tokens, batch, vocabulary
        self._batch = llama.llama_batch_init(batch, 0, 1)
        self._prepare_batch()

    def _prepare_batch(self) -> None:
        for row in range(self.batch):
            self._batch.n_seq_id[row] = 1
            self._batch.seq_id[row][0] = 0
        shape = (self.batch,)
        self._ids: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.token, shape)
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.pos, shape)
        self._wanted: NDArray[np.int8] = np.ctypeslib.as_array(self._batch.logits, shape)

    def decode(self, ids: Sequence[int], position: int, rows: int) -> NDArray[np.float32]:
        """Compute up to `batch` ids that stand at `position` and after; own copy of the logits of the last
        `rows`.

        Shape (rows, vocabulary). Ids must be inside the vocabulary. Raises DecodeFailed, LlamaClosed,
        ValueError.
        """
        if self._pointer is None:
            raise LlamaClosed("this context is closed; open it again")
        count = len(ids)
        if not (0 < count <= self.batch and 0 <= rows <= count and position + count <= self.tokens):
            raise ValueError(f"{count} ids at position {position} do not fit batch {self.batch}, context {self.tokens}")
        self._ids[:count] = ids
        self._positions[:count] = np.arange(position, position + count)
        self._wanted[: count - rows], self._wanted[count - rows : count] = 0, 1
        self._batch.n_tokens = count
        code = library().llama_decode(self._pointer, self._batch)
        if code != 0:
            raise DecodeFailed(code)
        return self._logits(count - rows, rows)

    def _logits(self, first: int, rows: int) -> NDArray[np.float32]:
        copied = np.empty((rows, self._vocabulary), np.float32)
        for row in range(rows):
            source = library().llama_get_logits_ith(self._pointer, first + row)
            ctypes.memmove(copied[row].ctypes.data, source, copied[row].nbytes)
        return copied

    def clear(self) -> None:
        """Forget the sequence, so that the next one can tell nothing from it. Raises LlamaClosed."""
        if self._pointer is None:
            raise LlamaClosed("this context is closed; open it again")
        llama = library()
        llama.llama_memory_clear(llama.llama_get_memory(self._pointer), True)

    def close(self) -> None:
        """Free the memory; again does nothing."""
        if self._pointer is None:
            return
        pointer, self._pointer = self._pointer, None
        del self._ids, self._positions, self._wanted
        library().llama_batch_free(self._batch)
        library().llama_free(pointer)
