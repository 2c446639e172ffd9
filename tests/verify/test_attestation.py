"""When a replay is evidence, and why not otherwise."""

import pytest
from attrs import evolve

from ledger.records import Fingerprint
from verify.attestation import abstention, same_engine
from verify.sampler import SAMPLER

ENGINE = Fingerprint(build="b1", backend="cpu", kv="f16", sampler=SAMPLER)


def test_an_engine_is_evidence_about_its_like() -> None:
    assert same_engine(ENGINE, evolve(ENGINE))
    assert abstention(ENGINE, evolve(ENGINE)) is None


@pytest.mark.parametrize("field", ["build", "backend", "kv"])
def test_another_engine_abstains_and_says_what_differs(field: str) -> None:
    other = evolve(ENGINE, **{field: "something else"})
    assert not same_engine(ENGINE, other)
    reason = abstention(other, ENGINE)
    assert reason is not None
    assert f"{field} 'something else'" in reason
    assert sum(name in reason for name in ("build", "backend", "kv '")) == 1


def test_a_sampler_of_the_sellers_own_is_never_replayed_even_by_its_like() -> None:
    foreign = evolve(ENGINE, sampler="")
    assert "sampler" in (abstention(foreign, foreign) or "")


def test_the_longest_reason_fits_into_a_verdict() -> None:
    names = ["\0" * 64, "x" * 64]
    one, other = (Fingerprint(build=name, backend=name, kv=name, sampler=SAMPLER) for name in names)
    for seller in (one, evolve(one, sampler="\0" * 64)):
        for checker in (other, evolve(other, sampler="y" * 64)):
            reason = abstention(seller, checker)
            assert reason
            assert len(reason) <= 256
