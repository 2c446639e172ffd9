"""What a rail's answers mean for an effect and for its account."""

from typing import Final

from ledger.account import Account
from ledger.changes import Change, Funded, Settled, Withdrawn
from ledger.effects import MAX_WHY, News, Tracked
from ledger.rails.port import Answer, Sight
from ledger.statement import PREPAID

# A claim that was tried so often, and vanished each time, is no reorganised chain: its owner should look.
_TRIES: Final = 4


def news_of(tracked: Tracked, answer: Answer) -> News | None:
    """What an answer is to an effect; None: nothing new."""
    match tracked.state, answer.fate:
        case "planned" | "unknown", "settled":
            return "settled" if answer.moved == tracked.effect.amount else "contradicted"
        case "planned" | "unknown", "failed":
            return "failed"
        case "planned", "unknown" | "absent":
            return "unknown"
        case "unknown", "unknown" if answer.why and answer.why[:MAX_WHY] != tracked.why:
            return "unknown"
        case "settled", "settled":
            return "confirmed" if answer.moved == tracked.effect.amount else "contradicted"
        case "settled", "absent" if tracked.effect.kind == "claim" and tracked.tries < _TRIES:
            return "vanished"
        case ("settled", "failed" | "absent") | ("failed", "settled"):
            return "contradicted"
    return None


def why_of(tracked: Tracked, answer: Answer) -> str:
    """What the rail said, for people."""
    if answer.fate == "settled" and answer.moved != tracked.effect.amount:
        return f"asked to move {tracked.effect.amount}, and it says that {answer.moved} has moved"
    if tracked.state in ("settled", "failed") and tracked.state != answer.fate:
        return f"it said {tracked.state} first, and then {answer.fate}"
    return answer.why


def moved_by(tracked: Tracked, answer: Answer) -> int:
    """What is to be counted for an answer: never more than was asked for, and nothing twice."""
    return min(answer.moved, tracked.effect.amount - tracked.moved) if answer.fate == "settled" else 0


def counted(tracked: Tracked, moved: int, account: Account) -> tuple[Change, ...]:
    """What it changes in the account that so much has moved; collateral is counted by sights of it."""
    return (Settled(account.settled + moved),) if moved and tracked.effect.settles else ()


def given_up(tracked: Tracked, news: News, account: Account, me: str) -> tuple[Change, ...]:
    """What it changes that a refund of prepaid money failed and is given up: no sight of the rail's will tell it.

    What `me` was to pay back stays gone: its transfer is signed for good, and whoever has seen that can still make it.
    """
    if account.key.payer != me:
        return ()
    if (tracked.effect.kind, tracked.state, news, account.key.rail) != ("refund", "failed", "dismissed", PREPAID):
        return ()
    return (Withdrawn(account.withdrawn - tracked.effect.amount, account.withdrawn_sequence + 1),)


def shows(tracked: Tracked, account: Account) -> bool:
    """Whether what an effect was to move can be seen by now, so that it is not mistaken for missing."""
    return tracked.effect.kind != "top_up" or account.funded >= tracked.effect.total


def seen(
    account: Account, me: str, tracked: Tracked | None, sight: Sight, *, awaited: bool = False
) -> tuple[Change, ...]:
    """What the latest sight of the collateral changes in the account of `me`, whose effect is `tracked`.

    A payer learns by it what was claimed; a payee counts its own claims, as its effects are told. `awaited`: a deposit
    that is counted need not show yet, so that one that shows less takes nothing away.
    """
    withdrawn = sight.withdrawn
    if tracked is not None and tracked.effect.kind in ("refund", "close"):
        withdrawn = max(withdrawn, account.withdrawn)  # what is about to go back covers nothing any more
    changes: list[Change] = []
    # The account may have gone on counting since the rail last did.
    if sight.funded > account.funded or (sight.funded < account.funded and not awaited):
        changes.append(Funded(sight.funded, max(sight.sequence, account.funded_sequence + 1)))
    if withdrawn != account.withdrawn:
        changes.append(Withdrawn(withdrawn, max(sight.sequence, account.withdrawn_sequence + 1)))
    if me == account.key.payer and sight.paid > account.settled:
        changes.append(Settled(sight.paid))
    return tuple(changes)
