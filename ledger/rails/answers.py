"""What a rail's answers mean for an effect and for its account."""

from ledger.account import Account
from ledger.changes import Change, Funded, Settled, Withdrawn
from ledger.effects import News, Tracked
from ledger.rails.port import Answer, Sight


def news_of(tracked: Tracked, answer: Answer) -> News | None:
    """What an answer is to an effect; None: nothing new."""
    match tracked.state, answer.fate:
        case "planned" | "unknown", "settled":
            return "settled" if answer.moved == tracked.effect.amount else "contradicted"
        case "planned" | "unknown", "failed":
            return "failed"
        case "planned", "unknown" | "absent":
            return "unknown"
        case "settled", "settled":
            return "confirmed" if answer.moved == tracked.effect.amount else "contradicted"
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


def counted(tracked: Tracked, news: News, moved: int, account: Account) -> tuple[Change, ...]:
    """What a piece of news, with so much moved, changes in the account."""
    effect = tracked.effect
    if effect.settles:
        return (Settled(account.settled + moved),) if moved else ()
    if effect.kind != "top_up":
        return ()  # counted when it was planned
    # Its own count goes on until the rail shows more; and back, where the rail takes its word back.
    funded = max(account.funded, effect.before + moved) if moved else account.funded
    if news == "contradicted" and not moved:
        funded = max(account.funded - tracked.moved, 0)
    return (Funded(funded, account.funded_sequence + 1),) if funded != account.funded else ()


def seen(account: Account, tracked: Tracked | None, sight: Sight) -> tuple[Change, ...]:
    """What a sight of the collateral changes in the account, whose effect is `tracked`."""
    withdrawn = sight.withdrawn
    if tracked is not None and tracked.effect.kind in ("refund", "close") and tracked.state != "settled":
        withdrawn = max(withdrawn, account.withdrawn)  # what is about to go back covers nothing any more
    changes: list[Change] = []
    if sight.sequence > account.funded_sequence and sight.funded != account.funded:
        changes.append(Funded(sight.funded, sight.sequence))
    if sight.sequence > account.withdrawn_sequence and withdrawn != account.withdrawn:
        changes.append(Withdrawn(withdrawn, sight.sequence))
    return tuple(changes)
