"""Channels on a chain of the tests: a payer with dollars, a receiver, and what they do."""

from attrs import define, field

from ledger.rails.stablecoin import contracts
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.contracts import Call, Row
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.rails.stablecoin.keys import Key
from tests.chain import ETHER, Anvil

DELAY_S = 3600
SALT = bytes(32)


def key(chain: Anvil, dollars: int = 0, ether: int = ETHER) -> Key:
    """A new wallet with money."""
    return Key.of(bytes(chain.wallet(dollars, ether).key))


def raw(address: str) -> bytes:
    return bytes.fromhex(address[2:])


@define
class Pair:
    """A payer with 100 dollars, the key of its vouchers, and a receiver; their channel on our contract."""

    chain: Anvil
    payer: Key = field(init=False)
    authorizer: Key = field(init=False)
    receiver: Key = field(init=False)
    config: ChannelConfig = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.payer = key(self.chain, dollars=100_000_000)
        self.authorizer = key(self.chain, ether=0)
        self.receiver = key(self.chain)
        self.config = ChannelConfig(
            self.payer.address,
            self.authorizer.address,
            self.receiver.address,
            self.receiver.address,
            raw(self.chain.deployed.dollar),
            DELAY_S,
            SALT,
        )

    def row(self, chain: Chain, total: int) -> Row:
        """A claim of a total that the payer promised."""
        digest = chain.place.voucher(chain.place.channel_id(self.config), total)
        return Row(self.config, total, self.authorizer.signature(digest), total)

    async def deposit(self, payee: Chain, payer: Chain, amount: int, salt: bytes = SALT) -> None:
        """By the payer's signature, brought by the payee."""
        deposit = await payer.authorize(self.config, amount, salt, self.chain.time + 3600)
        await self.submit(payee, b"deposit" + salt, payee.bring(self.config, deposit))

    async def withdraw(self, payer: Chain, amount: int) -> None:
        await self.submit(payer, b"withdraw", contracts.initiate_withdraw(payer.place.contract, self.config, amount))

    async def submit(self, sender: Chain, name: bytes, call: Call) -> None:
        """And have it mined."""
        await sender.submit(name, call)
        self.chain.catch_up()
