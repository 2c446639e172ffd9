"""Since when something has been unsettled on each account, so that small sums do not wait for ever over restarts."""

from ledger.account import Account, AccountKey


class Unsettled:
    """Follows accounts; times are milliseconds since 1970."""

    def __init__(self) -> None:
        # What was paid or set off by then, and the time: each payment begins a new wait.
        self._since: dict[AccountKey, tuple[int, int]] = {}

    def see(self, time_ms: int, account: Account) -> None:
        """Take an account as it is at a time."""
        if not account.unsettled:
            self._since.pop(account.key, None)
            return
        done = account.settled + account.netted
        found = self._since.get(account.key)
        if found is None or found[0] != done:
            self._since[account.key] = done, time_ms

    def since_ms(self, key: AccountKey) -> int | None:
        """Since when something has been unsettled on an account; None: nothing is."""
        found = self._since.get(key)
        return None if found is None else found[1]

    def copy(self) -> "Unsettled":
        """One that stays as it is."""
        copied = Unsettled()
        copied._since = dict(self._since)
        return copied

    def to_plain(self) -> list[list[str | int]]:
        """All of it as plain rows, in one order."""
        rows: list[list[str | int]] = [
            [key.payer, key.payee, key.rail, key.unit, *since] for key, since in self._since.items()
        ]
        return sorted(rows, key=lambda row: [str(part) for part in row])

    @classmethod
    def from_plain(cls, rows: list[list[object]]) -> "Unsettled":
        """What `to_plain` gave. Raises ValueError, TypeError."""
        found = cls()
        for payer, payee, rail, unit, done, time_ms in rows:
            key = AccountKey(_text(payer), _text(payee), _text(rail), _text(unit))  # type: ignore[arg-type]
            found._since[key] = _count(done), _count(time_ms)
        return found


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"{str(value)[:80]!r} is no text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError(f"{str(value)[:80]!r} is no number")
    return value
