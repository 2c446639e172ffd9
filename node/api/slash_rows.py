"""Slashes as JSON has them, and as the owner's status tells of them."""

from typing import Any

from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.slashes import Slash


def slash_row(bond: bytes, slash: Slash) -> dict[str, Any]:
    """A slash as JSON has it; times in seconds since 1970."""
    return {
        "bond": f"0x{bond.hex()}",
        "evidence": f"0x{slash.evidence.hex()}",
        "state": "answered" if slash.running and slash.answer else slash.state,
        "amount": dollars(slash.amount),
        "damage": dollars(slash.damage),
        "buyer": checksummed(slash.buyer),
        "answer": f"0x{slash.answer.hex()}" if slash.answer else None,
        "answer_by": slash.answer_by,
        "ends_by": slash.ends_by,
    }


def dollars(value: int) -> str:
    """An amount of any size: the contract holds larger ones than records do."""
    return f"{value // 10**6}.{value % 10**6:06}usd"
