"""Signed offers made to measure."""

from collections.abc import Callable
from typing import Any

import pytest

from ledger.identity import Identity
from ledger.money import Price
from ledger.records import Fingerprint, Offer, Signed, sign

NOW = 1_800_000_000

MakeOffer = Callable[..., Signed[Offer]]


def offer_by(seller: int = 1, **changes: Any) -> Signed[Offer]:
    """An open offer by the identity made from `seller`, but for the changes."""
    fields: dict[str, Any] = {
        "endpoints": (),
        "model": bytes([7]) * 32,
        "tokenizer": bytes([8]) * 32,
        "name": "a model",
        "architecture": "llama",
        "parameters": 8_000_000_000,
        "quantization": "Q8_0",
        "context": 4_096,
        "engine": Fingerprint("b1", "cpu", "f16", "gumbel-2"),
        "price": Price(1_000_000, 2_000_000, "uusd"),
        "rails": ("credit",),
        "slots": 1,
        "speed": 0,
        "first_token_ms": 0,
        "prekey": bytes([9]) * 32,
        "sequence": 1,
        "issued": NOW,
        "expires": NOW + 3_600,
    }
    return sign(Offer(**fields | changes), Identity(seller.to_bytes(32, "little")))


@pytest.fixture
def make_offer() -> MakeOffer:
    return offer_by


@pytest.fixture
def now() -> int:
    return NOW
