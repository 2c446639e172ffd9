"""When a replay is evidence, and why not otherwise."""

from collections.abc import Mapping

import pytest
from attrs import evolve

from ledger.records import Fingerprint, Sampling
from verify.attestation import UNDECLARED, abstention
from verify.calibration import BINS, STRATA, Calibration, Stratum
from verify.sampler import SAMPLER
from verify.steering import Steering

ENGINE = Fingerprint(build="b1", backend="cpu", kv="f16", sampler=SAMPLER)
PLAIN = Sampling(1_000_000, 1_000_000, 0, 0)
ENOUGH = dict.fromkeys(STRATA, (1_000, *(0,) * (BINS - 1)))


def calibrated(
    seller: Fingerprint, checker: Fingerprint, counts: Mapping[Stratum, tuple[int, ...]] = ENOUGH
) -> Calibration:
    return Calibration(seller, checker, bytes(32), counts)


def test_a_calibrated_pair_is_evidence_also_of_different_engines() -> None:
    other = evolve(ENGINE, kv="q8_0")
    assert abstention(ENGINE, ENGINE, calibrated(ENGINE, ENGINE), PLAIN, Steering()) is None
    assert abstention(ENGINE, other, calibrated(ENGINE, other), PLAIN, Steering()) is None


def test_an_engine_that_nobody_calibrated_abstains_even_about_its_like_and_says_how_to_calibrate() -> None:
    reason = abstention(ENGINE, evolve(ENGINE), None, PLAIN, Steering())
    assert reason == "nobody calibrated this model on this engine: run `idlemesh calibrate MODEL`"


@pytest.mark.parametrize("field", ["build", "backend", "kv"])
def test_a_pair_that_nobody_calibrated_abstains_and_says_what_differs(field: str) -> None:
    other = evolve(ENGINE, **{field: "something else"})
    for calibration in (None, calibrated(ENGINE, ENGINE), calibrated(ENGINE, other)):
        reason = abstention(other, ENGINE, calibration, PLAIN, Steering())
        assert reason is not None
        assert f"{field} 'something else'" in reason
        assert "idlemesh calibrate MODEL" in reason
        assert sum(name in reason for name in ("build", "backend", "kv '")) == 1


def test_a_calibration_that_was_broken_off_abstains() -> None:
    few = calibrated(ENGINE, ENGINE, {STRATA[0]: (1_000, *(0,) * (BINS - 1))})
    assert "only 1000 tokens are calibrated" in (abstention(ENGINE, ENGINE, few, PLAIN, Steering()) or "")


def test_an_order_hotter_than_what_was_calibrated_abstains() -> None:
    hot = evolve(PLAIN, temperature=1_500_001)
    assert "temperature of 1.5" in (abstention(ENGINE, ENGINE, calibrated(ENGINE, ENGINE), hot, Steering()) or "")


def test_a_sampler_of_the_sellers_own_is_never_replayed_even_by_its_like() -> None:
    foreign = evolve(ENGINE, sampler="")
    assert "sampler" in (abstention(foreign, foreign, calibrated(foreign, foreign), PLAIN, Steering()) or "")


def test_of_another_sampler_the_plain_greedy_choices_are_evidence_where_these_were_calibrated() -> None:
    foreign, greedy = evolve(ENGINE, sampler="own"), evolve(PLAIN, temperature=0)
    of_greedy = {stratum: counts for stratum, counts in ENOUGH.items() if stratum.temperature == 0}
    calibration = calibrated(foreign, ENGINE, of_greedy)
    assert abstention(foreign, ENGINE, calibration, greedy, Steering()) is None
    assert "sampler" in (abstention(foreign, ENGINE, calibration, greedy, Steering(grammar="root ::= [a-z]")) or "")
    assert "sampler" in (abstention(foreign, ENGINE, calibration, evolve(PLAIN, temperature=1), Steering()) or "")
    assert "calibrate MODEL --remote" in (abstention(foreign, ENGINE, None, greedy, Steering()) or "")


def test_what_another_program_forbids_by_a_grammar_is_no_evidence() -> None:
    one, other = evolve(ENGINE, grammar="reader 1"), evolve(ENGINE, grammar="reader 2")
    spelled, calibration = Steering(grammar="root ::= [a-z]"), calibrated(one, one)
    assert abstention(one, one, calibration, PLAIN, spelled) is None
    for seller, said in ((other, "'reader 2'"), (ENGINE, "'unknown'")):
        assert said in (abstention(seller, one, calibration, PLAIN, spelled) or "")
        assert abstention(seller, one, calibration, PLAIN, Steering()) is None


def test_a_calibration_of_different_models_tells_nothing() -> None:
    gross = dict.fromkeys(STRATA, (900, *(0,) * (BINS - 3), 100, 0))
    reason = abstention(ENGINE, ENGINE, calibrated(ENGINE, ENGINE, gross), PLAIN, Steering())
    assert "different models" in (reason or "")


def test_a_server_of_which_nothing_is_said_is_never_evidence() -> None:
    unsaid, greedy = evolve(ENGINE, sampler="own", build=UNDECLARED), evolve(PLAIN, temperature=0)
    assert "does not say" in (abstention(unsaid, ENGINE, calibrated(unsaid, ENGINE), greedy, Steering()) or "")


def test_the_longest_reason_fits_into_a_verdict_with_what_the_auditor_says_before() -> None:
    names = ["\0" * 64, "x" * 64]
    one, other = (Fingerprint(build=name, backend=name, kv=name, sampler=SAMPLER) for name in names)
    for seller in (one, evolve(one, sampler="\0" * 64)):
        for checker in (other, evolve(other, sampler="y" * 64)):
            reason = abstention(seller, checker, None, PLAIN, Steering())
            assert reason
            assert len(f"the audit abstains: {reason}") <= 256
