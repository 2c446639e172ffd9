"""What the rail reckons with and what docs/stablecoin.md says of it are what the contracts cost."""

import pytest

from benchmarks.channel_gas import DOCUMENT, kept, measured, written
from tests.chain import Anvil


def test_the_kept_figures_are_what_is_measured(chain: Anvil) -> None:
    found, reckoned = measured(chain), kept()
    assert {name: spent.size for name, spent in found.items()} == {name: spent.size for name, spent in reckoned.items()}
    for name, spent in found.items():
        # A byte that happens to be zero is cheaper: signatures differ by a few hundred gas.
        assert spent.gas == pytest.approx(reckoned[name].gas, rel=0.01), name


def test_the_tables_of_the_document_are_made_from_them() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert written(document) == document, "write them anew: python -m benchmarks.channel_gas --table"
    assert document.count("<!-- table: ") == 4
