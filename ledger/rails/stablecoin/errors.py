"""What can go wrong on a chain. Messages never hold an endpoint's address beyond its host: it may hold a key."""

from attrs import define


class ChainError(Exception):
    """The chain could not be asked, or said no; each subclass is one reason, with its values."""


@define
class Unreachable(ChainError):
    """No endpoint answered: nothing is known, and what was sent may have arrived."""

    why: str

    def __str__(self) -> str:
        return f"no RPC endpoint answers ({self.why}): add another one to [stablecoin] rpc"


@define
class WrongChain(ChainError):
    """An endpoint serves another chain."""

    host: str
    expected: int
    found: int

    def __str__(self) -> str:
        return f"the RPC endpoint at {self.host} serves chain {self.found}, not {self.expected}: remove it"


@define
class Disagreement(ChainError):
    """Endpoints say different things, or one says what cannot be: no word counts."""

    what: str

    def __str__(self) -> str:
        return f"RPC endpoints do not agree on {self.what}: replace the one in [stablecoin] rpc that is wrong"


@define
class Refused(ChainError):
    """The chain would not carry out a call: it was not sent, and no money moved.

    `by_contract`: the words are a contract's. An endpoint's may tell what this node's wallet has, or its key there.
    """

    why: str
    by_contract: bool = False

    def __str__(self) -> str:
        return f"the chain refuses it: {self.why}"


@define
class NoContract(ChainError):
    """Nothing is at an address."""

    what: str
    address: str

    def __str__(self) -> str:
        return f"there is no {self.what} at {self.address} on this network: check [stablecoin] contract and network"


@define
class WrongDecimals(ChainError):
    """A token that does not count in millionths."""

    found: int

    def __str__(self) -> str:
        return f"the token has {self.found} decimals: only tokens with 6 are supported"


@define
class TooDear(ChainError):
    """Gas costs more than the owner wants to pay; prices in wei."""

    price: int
    bound: int

    def __str__(self) -> str:
        price, bound = self.price / 10**9, self.bound / 10**9
        return f"gas costs {price:g} gwei and [stablecoin] max_gas_price is {bound:g}: wait, or raise it"


@define
class NoEther(ChainError):
    """The wallet cannot pay the gas; amounts in wei."""

    address: str
    needed: int
    found: int

    def __str__(self) -> str:
        needed, found = self.needed / 10**18, self.found / 10**18
        return f"the gas needs {needed:.6f} of the network's coin and {self.address} has {found:.6f}: send some there"


@define
class NoWallet(ChainError):
    """Something was to be signed without keys."""

    def __str__(self) -> str:
        return "no wallet is open: `idlemesh wallet create` makes one"


@define
class SignerFailed(ChainError):
    """The signer gave no signature of its address's; nothing was sent."""

    why: str

    def __str__(self) -> str:
        return f"[stablecoin] signer gave no signature: {self.why}"


@define
class OutboxFull(ChainError):
    """Too many transactions wait already."""

    waiting: int

    def __str__(self) -> str:
        return f"{self.waiting} transactions wait for the chain already: try again when some are through"


@define
class ChannelUnknown(ChainError):
    """No such channel was opened, as far as can be seen."""

    channel: bytes

    def __str__(self) -> str:
        return f"the channel 0x{self.channel.hex()} was never opened on this network"
