"""Only the owner's catalogue gives a digest a name."""

from pathlib import Path

import pytest
from attrs import evolve

from node.models.catalogue import DEMO_NAME, Entry, NameTaken, NoSuchModel, shipped
from node.models.manifest import manifest_of


def test_the_shipped_entry_is_that_of_the_shipped_model(demo: Path) -> None:
    manifest = manifest_of(demo)
    entry = shipped().entry(manifest.digest)
    assert entry is not None
    assert (entry.name, entry.family, entry.tier) == (DEMO_NAME, "idlemesh-demo", manifest.quantization)
    assert entry.licence == "CC0-1.0"
    assert shipped().find(DEMO_NAME) == manifest.digest


def test_a_stranger_has_no_name() -> None:
    assert shipped().entry(bytes(32)) is None
    with pytest.raises(NoSuchModel):
        shipped().find("llama-3.1-8b")


def test_the_owners_own_model_gets_an_entry(demo: Path) -> None:
    own = evolve(manifest_of(demo), quantization="Q4_K_M")
    catalogue = shipped().add_own(own, "Qwen3-8B-Q4_K_M")
    assert catalogue.entry(own.digest) == Entry("Qwen3-8B-Q4_K_M", "Qwen3-8B", "Q4_K_M")
    assert catalogue.find("Qwen3-8B-Q4_K_M") == own.digest


def test_a_model_that_is_known_keeps_its_entry(demo: Path) -> None:
    assert shipped().add_own(manifest_of(demo), "something-else") == shipped()


def test_two_models_cannot_have_one_name(demo: Path) -> None:
    with pytest.raises(NameTaken):
        shipped().add_own(evolve(manifest_of(demo), context=1), DEMO_NAME)


def test_a_family_is_searched_by_tier() -> None:
    catalogue = shipped()
    for number, tier in enumerate(("F16", "Q5_K_M", "Q4_K_M")):
        catalogue = catalogue.add(bytes([number]) * 32, Entry(f"m-{tier}", "m", tier))
    assert catalogue.family("m", "Q5") == (bytes(32), b"\x01" * 32)
    assert catalogue.family("other", "Q5") == ()
