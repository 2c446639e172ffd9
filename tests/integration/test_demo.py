"""The tour, as a user runs it: three processes, and figures that are computed from what they signed."""

import json
from typing import Any

from tests.integration.network import idlemesh


async def tour(*options: str) -> dict[str, Any]:
    """The one JSON object that a tour prints, which must have gone well."""
    said = await idlemesh("demo", "--once", "--json", *options)
    assert said.status == 0, said
    figures: dict[str, Any] = json.loads(said.out)
    return figures


async def test_the_tour_pays_the_honest_seller_and_condemns_the_cheat() -> None:
    figures = await tour()
    assert figures["ok"] is True
    assert figures["nodes"] == 3
    orders, receipts = figures["orders"], figures["receipts"]
    assert orders >= 30
    assert receipts["both_signed"] == orders
    assert receipts["paid"] + receipts["disputed"] == orders
    assert receipts["disputed"] > 0
    honest, cheat = figures["audits"]["honest"], figures["audits"]["cheat"]
    assert cheat["condemned"] is True
    assert cheat["tokens_checked"] > 0
    assert cheat["margin_mean"] > 0.002 > honest["margin_mean"]
    assert honest["condemned"] is False
    assert honest["tokens_checked"] > 0
    assert honest["orders"] > cheat["orders"]
    assert figures["accounts"] == {"balanced": True}
    assert figures["chain"] == "intact"


async def test_where_all_are_honest_nobody_is_condemned() -> None:
    figures = await tour("--honest-only")
    assert figures["ok"] is True
    assert [audit["condemned"] for audit in figures["audits"].values()] == [False, False]
    assert figures["receipts"]["disputed"] == 0
    assert figures["receipts"]["paid"] == figures["orders"] == figures["receipts"]["both_signed"]
    assert figures["audits"]["cheat"]["tokens_checked"] > 0  # the cheaper seller, as honest as the other here
