"""The door to llama.cpp: nothing that C++ would not survive gets through it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.models.gguf import NotGguf, TruncatedGguf
from node.models.llama import (
    LlamaClosed,
    LlamaRefused,
    QuantizationFailed,
    _registered,
    backend,
    backend_of,
    build,
    quantize,
)
from node.models.manifest import tokenizer_file
from node.models.quantization import UnknownTier
from node.models.vocab import UnknownToken, open_vocab
from node.models.weights import DecodeFailed, Model, Run

BACKENDS = json.loads((Path(__file__).parents[2] / "vectors" / "backends.json").read_text())["cases"]
PROMPT = "<|user|>Tell me a story about a fox.<|assistant|>"


def test_the_build_names_the_library_and_fits_a_fingerprint() -> None:
    assert build().startswith("llama-cpp-python ")
    assert len(build()) <= 64
    assert 0 < len(backend()) <= 64


@pytest.mark.parametrize("case", BACKENDS, ids=lambda case: case["machine"])
def test_the_backend_tells_the_instructions_or_the_gpu(case: dict[str, Any]) -> None:
    assert backend_of(case["system"], offloads=False) == case["cpu"]
    assert backend_of(case["system"], offloads=False, blas=True) == f"{case['cpu']}-blas"
    if case["offloaded"]:
        assert backend_of(case["system"], offloads=True) == case["offloaded"]


@pytest.mark.parametrize("system", ["", "CPU : LLAMAFILE = 1 | ", "CPU : AVX2 = 0 | NEON = 0 | ", "AVX2 = 1 | "])
def test_a_cpu_of_which_nothing_is_told_is_of_no_family(system: str) -> None:
    assert backend_of(system, offloads=False) == "cpu"


def test_a_gpu_that_says_nothing_of_itself_is_not_taken_for_the_cpu_beside_it() -> None:
    assert backend_of("CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | ", offloads=True) == "gpu"


def test_what_ggml_computes_with_is_known_by_name() -> None:
    assert "CPU" in _registered()


def test_the_cpu_of_this_machine_is_of_a_family() -> None:
    assert backend(gpu_layers=0).startswith("cpu-")


def test_a_vocabulary_turns_text_to_ids_and_back(demo: Path) -> None:
    vocab = open_vocab(demo)
    assert (vocab.size, vocab.eog, vocab.add_bos) == (1_024, frozenset({0}), False)
    ids = vocab.tokenize("Grüße an alle Füchse 🦊", parse_special=False)
    assert b"".join(map(vocab.piece, ids)).decode() == "Grüße an alle Füchse 🦊"
    assert vocab.tokenize("<|end|>", parse_special=True) == [0]
    assert len(vocab.tokenize("<|end|>", parse_special=False)) > 1
    assert (vocab.piece(0), vocab.text(0), vocab.text(-1)) == (b"", "<|end|>", "")
    vocab.close()


@pytest.mark.parametrize("token", [-1, 1_024, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_an_error(demo: Path, token: int) -> None:
    vocab = open_vocab(demo)
    with pytest.raises(UnknownToken):
        vocab.piece(token)
    vocab.close()


def test_closing_twice_is_fine_and_using_what_is_closed_an_error(demo: Path) -> None:
    model = Model(demo)
    context = model.context(tokens=64, batch=16, threads=1)
    for thing in (model, context, model, model.vocab):
        thing.close()
    with pytest.raises(LlamaClosed):
        context.decode([1], 0, 1)
    with pytest.raises(LlamaClosed):
        context.clear()
    with pytest.raises(LlamaClosed):
        model.vocab.tokenize("a", parse_special=False)
    with pytest.raises(LlamaClosed):
        model.context(tokens=64, batch=16, threads=1)


def test_logits_do_not_depend_on_how_a_prompt_is_cut(demo: Path) -> None:
    model = Model(demo)
    ids = model.vocab.tokenize(PROMPT, parse_special=True)
    context = model.context(tokens=256, batch=64, threads=1)
    whole = context.decode(ids, 0, len(ids))
    context.clear()
    rows = [context.decode([token], position, 1)[0] for position, token in enumerate(ids)]
    assert whole.shape == (len(ids), 1_024)
    np.testing.assert_allclose(np.stack(rows), whole, atol=0.5)
    assert np.abs(np.stack(rows) - whole).mean() < 0.02
    model.close()


def test_rows_are_copies_that_the_next_batch_leaves_alone(demo: Path) -> None:
    model = Model(demo)
    context = model.context(tokens=64, batch=16, threads=1)
    first = context.decode([5, 6, 7], 0, 1)
    kept = first.copy()
    context.decode([9], 3, 1)
    np.testing.assert_array_equal(first, kept)
    model.close()


def test_a_cleared_context_remembers_nothing(demo: Path) -> None:
    model = Model(demo)
    context = model.context(tokens=64, batch=16, threads=1)
    fresh = context.decode([5, 6, 7], 0, 1)
    context.decode([9, 10], 3, 0)
    context.clear()
    np.testing.assert_array_equal(context.decode([5, 6, 7], 0, 1), fresh)
    model.close()


@pytest.mark.parametrize(("ids", "position", "rows"), [([], 0, 0), ([1] * 17, 0, 1), ([1], 64, 1), ([1, 2], 0, 3)])
def test_batches_that_do_not_fit_are_refused(demo: Path, ids: list[int], position: int, rows: int) -> None:
    model = Model(demo)
    context = model.context(tokens=64, batch=16, threads=1)
    with pytest.raises(ValueError, match="do not fit"):
        context.decode(ids, position, rows)
    model.close()


def test_a_quantized_cache_computes_nearly_the_same(demo: Path) -> None:
    model = Model(demo)
    ids = model.vocab.tokenize(PROMPT, parse_special=True)
    exact = model.context(tokens=64, batch=64, threads=1).decode(ids, 0, 1)
    rough = model.context(tokens=64, batch=64, threads=1, kv="q8_0").decode(ids, 0, 1)
    assert 0 < np.abs(exact - rough).mean() < 0.5
    model.close()


def test_garbage_and_cut_files_never_reach_llama_cpp(demo: Path, tmp_path: Path) -> None:
    garbage, cut = tmp_path / "garbage.gguf", tmp_path / "cut.gguf"
    garbage.write_bytes(bytes(range(256)) * 10)
    cut.write_bytes(demo.read_bytes()[:2_000_000])
    for path, error in ((garbage, NotGguf), (cut, TruncatedGguf)):
        with pytest.raises(error):
            Model(path)
        with pytest.raises(error):
            open_vocab(path)
        with pytest.raises(error):
            quantize(path, tmp_path / "out.gguf", "Q2_K")


def test_what_llama_cpp_does_not_load_is_an_error_with_its_reason(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.gguf"
    path.write_bytes(tokenizer_file(demo))
    with pytest.raises(LlamaRefused) as caught:
        Model(path)
    assert "gave no reason" not in str(caught.value)


def test_worse_quantizations_are_made_from_a_quantized_file(demo: Path, tmp_path: Path) -> None:
    target = tmp_path / "q2.gguf"
    quantize(demo, target, "Q2_K", threads=1)
    assert target.stat().st_size < demo.stat().st_size / 2
    assert [path.name for path in tmp_path.iterdir()] == ["q2.gguf"]
    Model(target).close()


def test_a_quantization_that_fails_leaves_nothing(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationFailed):
        quantize(demo, tmp_path / "missing" / "q2.gguf", "Q2_K")
    with pytest.raises(UnknownTier):
        quantize(demo, tmp_path / "q9.gguf", "Q9_X")
    assert list(tmp_path.iterdir()) == []


def test_sequences_in_one_batch_are_those_alone(demo: Path) -> None:
    model = Model(demo)
    rows = [[5, 6, 7, 8], [9, 10], [11]]
    alone = []
    for ids in rows:
        context = model.context(tokens=64, batch=16, threads=1)
        alone.append(context.decode(ids, 0, 1)[0])
    many = model.context(tokens=64, batch=16, threads=1, sequences=3)
    together = many.compute([Run(ids, 0, sequence, 1) for sequence, ids in enumerate(rows)])
    assert together.shape == (3, 1_024)
    np.testing.assert_allclose(together, np.stack(alone), atol=0.5)
    first = many.compute([Run([3, 4], 2, 1, 2), Run([3], 1, 2, 0)]).copy()
    assert first.shape == (2, 1_024)
    model.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_sequence_that_was_saved_goes_on_in_another_place(demo: Path, shared: bool) -> None:
    model = Model(demo)
    context = model.context(tokens=64, batch=16, threads=1, sequences=2, shared=shared)
    context.compute([Run([5, 6, 7, 8], 0, 0, 0)])
    state = context.save(0)
    assert context.restore(1, state)
    assert context.remove(1, 3)
    assert (context.extent(0), context.extent(1)) == ((0, 3), (0, 2))
    branch = context.decode([9], 3, 1, sequence=1)
    assert context.remove(0)
    assert (context.extent(0), context.extent(1)) == ((-1, -1), (0, 3))
    fresh = model.context(tokens=64, batch=16, threads=1)
    np.testing.assert_allclose(fresh.decode([5, 6, 7, 9], 0, 1), branch, atol=0.5)
    model.close()


def test_a_cache_that_is_shared_and_full_says_so_and_works_on(demo: Path) -> None:
    model = Model(demo)
    context = model.context(tokens=256, batch=128, threads=1, sequences=3, shared=True)
    for sequence in (0, 1):
        context.compute([Run([5] * 128, 0, sequence, 0)])
    with pytest.raises(DecodeFailed) as caught:
        context.compute([Run([5], 0, 2, 1)])
    assert caught.value.code == 1
    assert not context.restore(2, context.save(0))
    context.remove(0)
    assert context.compute([Run([5], 0, 2, 1)]).shape == (1, 1_024)
    model.close()


def test_sequences_apart_each_have_the_whole_context(demo: Path) -> None:
    model = Model(demo)
    context = model.context(tokens=256, batch=256, threads=1, sequences=2)
    for sequence in (0, 1):
        assert context.decode([5] * 256, 0, 1, sequence).shape == (1, 1_024)
    model.close()


@pytest.mark.parametrize(
    "runs", [[Run([1], 0, 2, 1)], [Run([1], -1, 0, 1)], [Run([1] * 9, 0, 0, 1)] * 2, [Run([1] * 9, 0, 0, 9)]]
)
def test_runs_that_do_not_fit_are_refused(demo: Path, runs: list[Run]) -> None:
    model = Model(demo)
    context = model.context(tokens=64, batch=16, threads=1, sequences=2, rows=8)
    with pytest.raises(ValueError, match=r"fit|one of"):
        context.compute(runs)
    model.close()


def test_vectors_do_not_depend_on_how_an_input_is_cut(demo: Path) -> None:
    model = Model(demo)
    embedder = model.embedder(tokens=64, whole=64, threads=1, rows=16)
    ids = model.vocab.tokenize(PROMPT, parse_special=True)[:16]
    embedder.begin()
    whole = embedder.add(ids, 0)
    embedder.begin()
    parts = embedder.add(ids[:7], 0) + embedder.add(ids[7:], 7)
    assert whole.shape == (embedder.width,)
    np.testing.assert_allclose(parts, whole, atol=0.02 * np.abs(whole).max())
    assert not embedder.pools
    model.close()
    with pytest.raises(LlamaClosed):
        embedder.begin()
