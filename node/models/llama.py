"""The one door to llama.cpp: its low-level C interface through llama-cpp-python, with types and errors.

Everything C++ would answer with undefined behaviour (a closed model, an id outside the vocabulary, a file
that is no GGUF) is refused here. The library is loaded at first use, so that importing this module does
nothing; its log goes to Python's logging at debug level. What may be asked of a loaded file stands in
`node.models.vocab` and `node.models.weights`.
"""

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

from node.models.gguf import BadModelFile, read_gguf
from node.models.pages import want_huge_pages
from node.models.quantization import file_type_number

# The instructions that llama.cpp's kernels are written for, preferred ones first: ggml's feature, and what a backend
# calls it. Each adds up in another order or precision, so what is honest between engines of one says nothing of others.
_FAMILIES: Final = (
    ("AMX_INT8", "amx"),
    ("AVX512", "avx512"),
    ("AVX2", "avx2"),
    ("AVX", "avx"),
    ("SSSE3", "ssse3"),
    ("SSE3", "sse3"),
    ("SVE", "sve"),
    ("FP16_VA", "neon-fp16"),
    ("NEON", "neon"),
    ("RISCV_V", "riscv-v"),
    ("VSX", "vsx"),
    ("VXE", "vxe"),
    ("WASM_SIMD", "wasm"),
)
_ERROR_LEVEL: Final = 4  # enum ggml_log_level, as of ggml.h: debug 1, info 2, warn 3, error 4
_log = logging.getLogger(__name__)
_loading = threading.Lock()
_first_error = threading.local()


class LlamaRefused(BadModelFile):
    """A file that reads well but that llama.cpp does not load, with what it said."""

    def __init__(self, path: Path, said: str) -> None:
        reason = f"llama.cpp cannot load it ({said or 'it gave no reason'})"
        super().__init__(str(path), reason, "Try a newer idlemesh, or another file of the model.")
        self.said = said


class QuantizationFailed(BadModelFile):
    """llama.cpp's quantizer gave up."""

    def __init__(self, path: Path, target: str, said: str) -> None:
        reason = f"llama.cpp cannot make {target} of it ({said or 'it gave no reason'})"
        super().__init__(str(path), reason, "Check the space on the disk, or choose another quantization.")


class LlamaClosed(RuntimeError):
    """Something was asked of a model that was closed before."""


def build() -> str:
    """Which llama.cpp computes here, for the engine fingerprint; at most 64 characters."""
    return f"llama-cpp-python {version('llama_cpp_python')}, llama.cpp {library().llama_version().decode()}"[:64]


def backend(gpu_layers: int = -1) -> str:
    """What the weights are multiplied on, for the engine fingerprint: "cpu-avx2", "cuda", "mtl" and so on."""
    llama = library()
    offloads = gpu_layers != 0 and llama.llama_supports_gpu_offload()
    return backend_of(llama.llama_print_system_info().decode(), offloads=offloads, blas="BLAS" in _registered())


def _registered() -> set[str]:
    """The names of ggml's backends. That of a BLAS library is not on the line about the system."""
    from llama_cpp._ggml import libggml

    libggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    libggml.ggml_backend_reg_get.argtypes, libggml.ggml_backend_reg_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    libggml.ggml_backend_reg_name.argtypes, libggml.ggml_backend_reg_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    count: int = libggml.ggml_backend_reg_count()
    return {libggml.ggml_backend_reg_name(libggml.ggml_backend_reg_get(place)).decode() for place in range(count)}


def backend_of(system: str, *, offloads: bool, blas: bool = False) -> str:
    """The backend that llama.cpp's line about its system tells of: "CUDA : ARCHS = 890 | CPU : SSE3 = 1 | AVX = 1 | ".

    Where it does not tell which instructions a CPU computes with it is "cpu", and where not which GPU, "gpu". With a
    BLAS library prompts are multiplied in single precision, unlike what follows them: "cpu-avx2-blas".
    """
    sections: dict[str, set[str]] = {}
    name = ""
    for part in system.split("|"):
        head, colon, rest = part.partition(" : ")
        name = head.strip().lower() if colon else name
        feature, _, value = (rest if colon else head).partition("=")
        if value.strip() not in ("", "0"):
            sections.setdefault(name, set()).add(feature.strip())
    if offloads:
        return next((section for section in sections if section not in ("", "cpu")), "gpu")
    features = sections.get("cpu", set())
    cpu = next((f"cpu-{family}" for feature, family in _FAMILIES if feature in features), "cpu")
    return f"{cpu}-blas" if blas else cpu


def quantize(source: Path, target: Path, file_type: str, threads: int = 0) -> None:
    """Write `source` again as llama.cpp's `file_type` ("Q2_K"), also from a quantized file; 0 threads means
    all.

    Raises BadModelFile, UnknownTier. `target` appears only when it is complete.
    """
    read_gguf(source)
    llama = library()
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = file_type_number(file_type)
    settings.allow_requantize, settings.nthread = True, threads
    partial = target.with_name(f"{target.name}.partial")
    _first_error.text = ""
    if llama.llama_model_quantize(bytes(source), bytes(partial), ctypes.byref(settings)) != 0:
        partial.unlink(missing_ok=True)
        raise QuantizationFailed(source, file_type, _first_error.text)
    partial.replace(target)


class Closable(Protocol):
    """What is closed before the model it belongs to."""

    def close(self) -> None:
        """Free it; again does nothing."""
        ...


class Handle:
    """A loaded llama_model and what must be freed before it; free to be closed twice."""

    def __init__(self, pointer: int) -> None:
        self._pointer: int | None = pointer
        self._contexts: list[Closable] = []
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[int]:
        """The pointer, kept alive meanwhile. Raises LlamaClosed."""
        with self._lock:
            if self._pointer is None:
                raise LlamaClosed("this model is closed; open it again")
            yield self._pointer

    def keep(self, context: Closable) -> None:
        """Close this first when the model is closed."""
        self._contexts.append(context)

    def close(self) -> None:
        """Free everything; again does nothing."""
        with self._lock:
            pointer, self._pointer = self._pointer, None
            for context in self._contexts:
                context.close()
            if pointer is not None:
                library().llama_model_free(pointer)


def load(path: Path, *, vocab_only: bool, gpu_layers: int = -1) -> Handle:
    """Load a file. Raises BadModelFile, OSError."""
    read_gguf(path)  # llama.cpp aborts the process on some broken files: they go no further
    llama = library()
    settings = llama.llama_model_default_params()
    settings.vocab_only, settings.n_gpu_layers = vocab_only, gpu_layers
    # A mapped file that somebody cuts short would kill the process at the next step.
    settings.load_mode = llama.LLAMA_LOAD_MODE_NONE
    settings.progress_callback = llama.llama_progress_callback(_on_progress)
    _first_error.text = ""
    pointer = llama.llama_model_load_from_file(bytes(path), settings)
    if not pointer:
        raise LlamaRefused(path, _first_error.text)
    return Handle(pointer)


def library() -> ModuleType:
    """llama_cpp's low-level functions, for `vocab` and `weights`; started at the first call."""
    with _loading:
        return _start()


@lru_cache(maxsize=1)
def _start() -> ModuleType:
    import llama_cpp.llama_cpp as llama

    callback = llama.llama_log_callback(_on_log)
    # llama.cpp keeps the bare pointer: without a reference from here the callback would be collected.
    _on_log.callback = callback  # type: ignore[attr-defined]
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    return llama


def _on_progress(done: float, _data: object) -> bool:
    if done == 0.0:  # there is memory for the weights, and nothing in it yet
        want_huge_pages()
    return True  # go on


def _on_log(level: int, text: bytes, _data: object) -> None:
    line = text.decode("utf-8", "replace").strip()
    if level == _ERROR_LEVEL and line and not getattr(_first_error, "text", ""):
        _first_error.text = line  # the first one names the cause, those after it only who gave up
    if line:
        _log.debug("%s", line)
