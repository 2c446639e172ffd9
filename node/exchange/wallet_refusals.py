"""What the wallet cannot do now; each is one reason, and its message tells what to do."""

from attrs import define

from ledger.money import Amount


class WalletRefused(Exception):
    """What the wallet cannot do now; each subclass is one reason, and its message tells what to do."""


@define
class TooLittle(WalletRefused):
    """More was to be moved than the wallet has."""

    has: Amount
    wanted: Amount
    address: str

    def __str__(self) -> str:
        return f"the wallet has {self.has}, and {self.wanted} was to be moved: send dollars to {self.address} first"


@define
class NothingThere(WalletRefused):
    """There is no channel with the peer, or nothing in it that could move."""

    why: str

    def __str__(self) -> str:
        return f"{self.why}: `idlemesh wallet channels` shows what is in each"


@define
class SellerUnheard(WalletRefused):
    """A seller does not say what is left of what it was paid in advance."""

    why: str

    def __str__(self) -> str:
        return f"what the seller says is left is not known: {self.why}"


@define
class NoBonds(WalletRefused):
    """The contract of bonds is not known."""

    def __str__(self) -> str:
        return 'no contract of bonds is known here: write its address into config.toml, as [stablecoin] bonds = "0x..."'


@define
class NotDollars(WalletRefused):
    """An amount that is no dollars."""

    amount: Amount

    def __str__(self) -> str:
        return f"{self.amount} is no dollar amount: this wallet counts in usd, as in 5usd"
