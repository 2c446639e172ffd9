"""The owner's money on a chain, as the configuration has it: keys, chain, rail and channels."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

from ledger.database import LedgerError
from ledger.identity import Did
from ledger.rails.port import Rail
from ledger.rails.stablecoin.bond_terms import KnownBonds
from ledger.rails.stablecoin.bonds import Bonds
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.errors import ChainError, Disagreement, SignerFailed, Unreachable
from ledger.rails.stablecoin.keys import CommandSigner, KeysError, Signer, open_keystore
from ledger.rails.stablecoin.networks import NetworkError, address, checksummed, network
from ledger.rails.stablecoin.rail import Stablecoin
from node.exchange.bonding import OwnBonds
from node.exchange.book import Book
from node.exchange.channels import Channels, Teller
from node.exchange.fee_keeping import FeeKeeper
from node.exchange.strangers import PREPAID_RAIL, OwnWallet, paying_from
from node.exchange.tabs import stranger_config
from node.exchange.till import Wanted
from node.home import Home, HomeError
from node.paid.prepaid import Asks, Prepaid
from node.stablecoin_settings import StablecoinSettings

_GWEI: Final = 10**9
_MAX_PASSPHRASE: Final = 4_096
_CHECK_AGAIN_S: Final = 60.0

_log = logging.getLogger(__name__)


class NoMoney(HomeError):
    """The section [stablecoin] cannot be used as it is; the message says what to do."""


@frozen
class Money:
    """What the node pays and is paid with on one chain."""

    settings: StablecoinSettings
    chain: Chain
    rail: Stablecoin
    channels: Channels
    bonds: Bonds | None
    own_bonds: OwnBonds | None
    fees: FeeKeeper

    def rails(self, asks: Asks | None) -> list[Rail]:
        """What moves money here: channels, and what was prepaid; `asks` gets this node's own of it back."""
        return [self.rail, Prepaid(self.chain, asks)]

    @property
    def token(self) -> bytes:
        """The address of the dollar there."""
        return self.chain.network.token.address

    @property
    def wanted(self) -> Wanted:
        """What a seller wants of a channel to it."""
        said = self.settings
        return Wanted(self.chain.place, self.token, self.chain.address, said.withdraw_delay, said.min_deposit.value)

    def known_bonds(self, arbiters: Iterable[str]) -> KnownBonds | None:
        """What bonds this node counts as a buyer that trusts these arbiters; None: no contract of bonds is known."""
        if self.bonds is None:
            return None
        return KnownBonds(self.bonds.place, self.token, frozenset(map(address, arbiters)))


async def open_money(
    stack: contextlib.AsyncExitStack,
    home: Home,
    settings: StablecoinSettings,
    book: Book,
    dial: Callable[[Did], Teller | None],
    bond: bytes | None = None,
) -> Money:
    """Open the wallet, and make the rail one of the book's; the chain may be down meanwhile. Raises NoMoney.

    `bond` is the one that offers are to name; None: the largest.
    """
    try:
        signer = await _open_signer(home, settings)
        where = network(settings.network)
        if settings.confirmations is not None:
            where = where.with_(confirmations=settings.confirmations)
        contract = _address(settings.contract)
        collectors = _address(settings.collector), _address(settings.approve_collector)
        if contract is not None and any(collectors):
            where = where.deployed(contract, *collectors)
        chain = await Chain.open(
            where,
            [url.get_secret_value() for url in settings.rpc] or where.rpc,
            home.chain,
            signer,
            contract=contract,
            max_gas_price=None if settings.max_gas_price is None else int(settings.max_gas_price * _GWEI),
        )
    except (KeysError, NetworkError, ChainError, SignerFailed) as error:
        raise NoMoney(str(error)) from None
    stack.push_async_callback(chain.close)
    checking = asyncio.create_task(_tell_what_is_wrong(chain))
    stack.push_async_callback(_ended, checking)
    channels = await Channels.open(book, dial, lambda key: stranger_config(book.strangers, key))
    _check_channels(channels, chain, book.me)
    await _keep_to_wallet(book, OwnWallet(where.caip2, chain.address))
    rail = Stablecoin(chain, channels, book.me, ether=settings.ether.value, min_deposit=settings.min_deposit.value)
    stack.push_async_callback(rail.close)
    book.rails.add(rail)
    bonds = Bonds(chain, address(settings.bonds)) if settings.bonds is not None else None
    own_bonds = await OwnBonds.open(book, bonds, chain.address, where.token.address, bond) if bonds else None
    fees = FeeKeeper(book, chain, where.caip2, rail.name)
    return Money(settings, chain, rail, channels, bonds, own_bonds, fees)


async def _tell_what_is_wrong(chain: Chain) -> None:
    """Log why money cannot move there, if so: the chain may be down when a node starts, and is asked until it is up."""
    silent = False
    while True:
        try:
            await chain.check()
        except (Unreachable, Disagreement) as error:
            if not silent:
                _log.warning("money on %s waits: %s", chain.network.name, error)
            silent = True
            await asyncio.sleep(_CHECK_AGAIN_S)
        except ChainError as error:
            _log.error("no money moves on %s: %s", chain.network.name, error)
            return
        else:
            return


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _check_channels(channels: Channels, chain: Chain, me: str) -> None:
    """Whether the accounts' channels are where the configuration says, and this wallet's. Raises NoMoney.

    An account has one channel for good, with all that was ever promised on it.
    """
    for channel in channels.all():
        if (channel.network, channel.contract) != (chain.place.network, chain.place.contract):
            raise NoMoney(
                f"accounts here have channels on {channel.network} in the contract {checksummed(channel.contract)}:"
                " write that into [stablecoin] network and contract; other money takes a node with another identity"
            )
        ours = channel.wallet if channel.payer == me else channel.receiver
        if ours != chain.address:
            other = channel.payee if channel.payer == me else channel.payer
            _log.warning("the channel with %s is of the wallet %s, and this is another", other, checksummed(ours))


async def _keep_to_wallet(book: Book, wallet: OwnWallet) -> None:
    """What was prepaid goes back once from the wallet that began it: another one would pay it again. Raises NoMoney."""
    before = book.strangers.own
    if before == wallet:
        return
    if before is not None and any(key.rail == PREPAID_RAIL for key in book.journal.books.effects):
        began, here = (f"{checksummed(each.address)} on {each.network}" for each in (before, wallet))
        raise NoMoney(
            f"money that was paid in advance is on its way back from the wallet {began}, and {here} would send it"
            " again: name that wallet's keystore or signer, and its network, in [stablecoin] until `idlemesh accounts`"
            " shows no such refund"
        )
    try:
        await book.post(paying_from(book.me, wallet))
    except LedgerError as error:  # a node starts on a full disk, too
        _log.warning("the ledger does not say which wallet is used: %s", error)


def _address(text: str | None) -> bytes | None:
    return None if text is None else address(text)


async def _open_signer(home: Home, settings: StablecoinSettings) -> Signer:
    if settings.signer is not None:
        return await CommandSigner.start(settings.signer)
    if settings.passphrase_file is None:
        raise NoMoney("the wallet's passphrase is needed: write [stablecoin] passphrase_file, or signer")
    return open_keystore(settings.keystore or home.wallet, _passphrase(settings.passphrase_file))


def _passphrase(path: Path) -> str:
    """The first line of a file."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(_MAX_PASSPHRASE).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise NoMoney(f"the passphrase in {path} cannot be read: {why}") from None
