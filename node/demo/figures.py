"""The figures of the tour, computed from what the nodes show and from the records they signed; nothing is assumed."""

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from ledger.bundle import check, from_json


@frozen
class Seen:
    """What the tour collected: the owner's view, and each seller's own accounts, by the sellers' did:key."""

    orders: int
    receipts: Sequence[dict[str, Any]]
    exports: Sequence[dict[str, Any]]
    peers: Sequence[dict[str, Any]]
    owner_accounts: dict[str, Any]
    seller_accounts: dict[str, dict[str, Any]]
    names: dict[str, str] = field(factory=dict)  # did -> "honest" or "cheat", as the tour set them up


def compute(seen: Seen, honest_only: bool) -> dict[str, Any]:
    """One object with all figures; `ok` says whether every step held."""
    both_signed = sum(1 for export in seen.exports if _both_signed(export))
    paid = [r for r in seen.receipts if r["acknowledged"] and r["accepted"]]
    disputed = [r for r in seen.receipts if r["acknowledged"] and not r["accepted"]]
    audits = {name: _audits(did, seen) for did, name in seen.names.items()}
    agree = balanced(seen.owner_accounts, seen.seller_accounts)
    chains = {seen.owner_accounts["chain"], *(accounts["chain"] for accounts in seen.seller_accounts.values())}
    condemned_rightly = audits["cheat"]["condemned"] != honest_only and not audits["honest"]["condemned"]
    ok = (
        both_signed == len(seen.receipts) == seen.orders >= 30
        and condemned_rightly
        and bool(disputed) != honest_only
        and bool(paid)
        and agree
        and chains == {"intact"}
        and audits["cheat"]["tokens_checked"] > 0
    )
    return {
        "ok": ok,
        "nodes": len(seen.names) + 1,
        "orders": seen.orders,
        "receipts": {"both_signed": both_signed, "paid": len(paid), "disputed": len(disputed)},
        "audits": audits,
        "accounts": {"balanced": agree},
        "chain": "intact" if chains == {"intact"} else "broken",
    }


def _both_signed(export: dict[str, Any]) -> bool:
    """Whether receipt and acknowledgement are there, with every signature, sum and commitment as it must be."""
    return "acknowledgement" in export and all(one.passed for one in check(from_json(export)))


def _audits(did: str, seen: Seen) -> dict[str, Any]:
    verdicts = [v for r in seen.receipts if r["seller"] == did for v in r["verdicts"]]
    tokens = sum(v["tokens"] for v in verdicts)
    weighted = sum(v["margin_mean"] * v["tokens"] for v in verdicts)
    return {
        "condemned": any(peer["condemned"] for peer in seen.peers if peer["did"] == did),
        "orders": sum(1 for r in seen.receipts if r["seller"] == did),
        "audits": len(verdicts),
        "tokens_checked": tokens,
        "odd_tokens": sum(v["odd"] for v in verdicts),
        "margin_mean": round(weighted / tokens, 6) if tokens else None,
    }


def balanced(owner_accounts: dict[str, Any], seller_accounts: dict[str, dict[str, Any]]) -> bool:
    """Whether every ledger adds up, and each seller was promised exactly what the owner's ledger says."""
    ledgers = [owner_accounts, *seller_accounts.values()]
    if not all(ledger["balanced"] for ledger in ledgers):
        return False
    promised = {a["peer"]: (a["authorized"], a["earned"]) for a in owner_accounts["accounts"]}
    for did, accounts in seller_accounts.items():
        here = next((a for a in accounts["accounts"] if a["direction"] == "they pay"), None)
        authorized, earned = promised.get(did, ("0.000000usd", "0.000000usd"))
        if (here["authorized"] if here else "0.000000usd") != authorized or authorized != earned:
            return False
    return True
