"""A Llama of random weights to measure speed with: made from a seed, so that nothing has to be downloaded."""

import os
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

# About 160 million parameters: 49 in the two tables of the vocabulary, 113 in the layers.
VOCABULARY: Final = 32_000
WIDTH: Final = 768
LAYERS: Final = 16
HEADS: Final = 12
HIDDEN: Final = 2_048
CONTEXT: Final = 4_096
SEED: Final = 1
_CONTROLS: Final = ("<unk>", "<s>", "</s>")
_NAME: Final = "random-llama-160M-1-Q8_0.gguf"


def random_llama(folder: Path | None = None) -> Path:
    """The path of the model, made first where it is not there yet; in the user's cache folder unless told."""
    path = (folder or _cache()) / _NAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        _write(partial)
        partial.replace(path)
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idlemesh"


def _write(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random-llama-160M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)
    _add_tensors(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """SentencePiece's control and byte tokens, and made-up words that tokenize to themselves."""
    tokens = [*_CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    words = VOCABULARY - len(tokens)
    tokens += [f"\u2581w{number}" for number in range(words)]
    kinds += [gguf.TokenType.NORMAL] * words
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def _add_tensors(writer: gguf.GGUFWriter) -> None:
    draw = np.random.default_rng(SEED)
    _add_matrix(writer, "token_embd.weight", draw, VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            _add_matrix(writer, f"{name}{part}.weight", draw, WIDTH, WIDTH)
        for part in ("ffn_gate", "ffn_up"):
            _add_matrix(writer, f"{name}{part}.weight", draw, HIDDEN, WIDTH)
        _add_matrix(writer, f"{name}ffn_down.weight", draw, WIDTH, HIDDEN)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{name}{part}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    _add_matrix(writer, "output.weight", draw, VOCABULARY, WIDTH)


def _add_matrix(writer: gguf.GGUFWriter, name: str, draw: np.random.Generator, rows: int, columns: int) -> None:
    """Normal weights that keep the size of what flows through, as in a model before its training."""
    weights: NDArray[np.float32] = draw.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
