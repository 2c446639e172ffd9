"""Commitments: what the vectors say, in whatever groups the ids come, and blind without the salt."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.commitments import AnswerCommitment, answer_commitment, ids_bytes, ids_from_bytes, prompt_commitment

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "commitments.json").read_text())
SALT, ORDER = bytes([6]) * 32, bytes([7]) * 32
IDS = st.lists(st.integers(0, 2**32 - 1), max_size=300)


@pytest.mark.parametrize("vector", VECTORS["prompt"], ids=lambda v: v["commitment"][:8])
def test_a_prompt_s_commitment_is_what_the_vectors_say(vector: dict[str, Any]) -> None:
    assert prompt_commitment(bytes.fromhex(vector["salt"]), vector["ids"]).hex() == vector["commitment"]


@pytest.mark.parametrize("vector", VECTORS["answer"], ids=lambda v: f"{len(v['ids'])} ids")
def test_an_answer_s_commitment_is_what_the_vectors_say(vector: dict[str, Any]) -> None:
    salt, order = bytes.fromhex(vector["salt"]), bytes.fromhex(vector["order"])
    assert answer_commitment(salt, order, vector["ids"]).hex() == vector["commitment"]


@given(IDS, st.lists(st.integers(0, 300), max_size=10))
def test_a_commitment_does_not_depend_on_how_the_ids_were_grouped(ids: list[int], cuts: list[int]) -> None:
    chain = AnswerCommitment(SALT, ORDER)
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    for start, end in pairwise(bounds):
        chain.add(ids[start:end])
    assert (chain.tokens, chain.value()) == (len(ids), answer_commitment(SALT, ORDER, ids))


@given(IDS.filter(bool), st.data())
def test_another_id_salt_or_order_gives_another_commitment(ids: list[int], data: st.DataObject) -> None:
    other = list(ids)
    other[data.draw(st.integers(0, len(ids) - 1))] ^= data.draw(st.integers(1, 2**32 - 1))
    commitments = [
        answer_commitment(SALT, ORDER, ids),
        answer_commitment(SALT, ORDER, other),
        answer_commitment(SALT, ORDER, ids[:-1]),
        answer_commitment(ORDER, ORDER, ids),
        answer_commitment(SALT, SALT, ids),
    ]
    assert len(set(commitments)) == len(commitments)


@given(IDS)
def test_ids_are_four_bytes_each_little_endian(ids: list[int]) -> None:
    assert ids_bytes(ids) == b"".join(i.to_bytes(4, "little") for i in ids)
    assert ids_from_bytes(ids_bytes(ids)) == tuple(ids)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_bytes_that_are_no_whole_ids_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="whole number"):
        ids_from_bytes(bytes(length))
