"""Money on a chain as the configuration has it; the chain itself is not asked for any of this."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from ledger.account import AccountKey
from ledger.changes import Funded
from ledger.effects import Effect, EffectPlanned, EffectTold
from ledger.events import AccountChanged
from ledger.identity import Did, Identity
from ledger.journal import MemoryJournal
from ledger.rails.stablecoin.channels import open_channel
from ledger.rails.stablecoin.digests import Place
from ledger.rails.stablecoin.keys import create_keystore
from node.exchange.book import Book, kept
from node.exchange.opening import NotAPeer, NoTerms, Opening, TooLittleForPeer
from node.exchange.rails import CREDIT
from node.exchange.till import Till
from node.home import Home
from node.own_money import Money, NoMoney, open_money
from node.ports import ManualClock
from node.stablecoin_settings import StablecoinSettings

US, SELLER = Identity(b"\1" * 32), Identity(b"\2" * 32)


@pytest.fixture
async def stack() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as opened:
        yield opened


async def book_of(identity: Identity) -> Book:
    return await Book.open(MemoryJournal(identity.did), identity, ManualClock())


def home_in(folder: Path, secret: bytes = b"\3" * 32) -> Home:
    """A home with a wallet, whose passphrase is in a file."""
    folder.mkdir()
    create_keystore(folder / "wallet.json", "for tests", secret=secret, cost=2)
    (folder / "passphrase").write_text("for tests\n")
    return Home(folder)


async def opened(stack: contextlib.AsyncExitStack, home: Home, book: Book, **settings: Any) -> Money:
    # Nobody listens there.
    said = {"network": "anvil", "rpc": ["http://127.0.0.1:9"], "passphrase_file": home.folder / "passphrase"}
    return await open_money(stack, home, StablecoinSettings(**{**said, **settings}), book, lambda _: None)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"passphrase_file": None}, "write .stablecoin. passphrase_file, or signer"),
        ({"passphrase_file": Path("nowhere")}, "the passphrase in nowhere cannot be read"),
        ({"keystore": Path("nowhere.json")}, "`idlemesh wallet create` makes one"),
        ({"network": "goerli"}, "no network is called 'goerli'"),
        ({"contract": "0x" + "11" * 20}, "collector"),
    ],
)
async def test_settings_that_open_no_money_say_what_to_do(
    stack: contextlib.AsyncExitStack, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    home = home_in(tmp_path / "home")
    with pytest.raises(NoMoney, match=why):
        await opened(stack, home, await book_of(US), **settings)


async def test_another_passphrase_does_not_open_the_wallet(stack: contextlib.AsyncExitStack, tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    (home.folder / "passphrase").write_text("secret\n")
    with pytest.raises(NoMoney, match="the passphrase does not open") as error:
        await opened(stack, home, await book_of(US))
    assert "secret" not in str(error.value)


async def test_a_node_starts_while_its_chain_is_down_and_prefers_channels_to_credit(
    stack: contextlib.AsyncExitStack, tmp_path: Path
) -> None:
    book = await book_of(US)
    money = await opened(stack, home_in(tmp_path / "home"), book)
    assert book.rails.names == (money.rail.name, CREDIT)


async def test_accounts_with_channels_elsewhere_keep_their_network(
    stack: contextlib.AsyncExitStack, tmp_path: Path
) -> None:
    book, home = await book_of(US), home_in(tmp_path / "home")
    seller = await opened(stack, home_in(tmp_path / "seller", b"\4" * 32), await book_of(SELLER))
    terms = Till(await book_of(SELLER), seller.channels, seller.rail, seller.wanted, _never)._terms()
    channel = open_channel(US, SELLER.did, terms, Place(1, terms.contract), bytes(20))
    await book.post(records=(kept(channel),))
    with pytest.raises(NoMoney, match="accounts here have channels on eip155:1 in the contract 0x"):
        await opened(stack, home, book)


async def test_a_wallet_or_network_is_changed_once_no_prepaid_money_is_on_its_way_back(
    stack: contextlib.AsyncExitStack, tmp_path: Path
) -> None:
    book, home, other = await book_of(US), home_in(tmp_path / "home"), home_in(tmp_path / "other", b"\4" * 32)
    await opened(stack, home, book)
    entries = book.journal.head.sequence
    await opened(stack, home, book)
    assert book.journal.head.sequence == entries, "it is said once"
    key = AccountKey("did:pkh:eip155:31337:0x" + "11" * 20, US.did, "prepaid", "uusd")
    await book.post(AccountChanged(key, Funded(5, 1)))
    await book.post(EffectPlanned(Effect(b"k" * 32, key, "refund", 0, 5), 1))
    await opened(stack, home, book)
    for another, settings in ((other, {}), (home, {"network": "base"})):
        with pytest.raises(NoMoney, match=r"on its way back from the wallet 0x[0-9a-fA-F]{40} on eip155:31337"):
            await opened(stack, another, book, **settings)
    await book.post(EffectTold(key, b"k" * 32, "settled", 2))
    await book.post(EffectTold(key, b"k" * 32, "confirmed", 3))
    await opened(stack, other, book)


class Line:
    """A seller, of whom only its terms are asked."""

    def __init__(self, till: Till) -> None:
        self.till = till

    async def channel_terms(self) -> bytes:
        return await self.till.channel_terms()


async def test_a_channel_is_opened_once_by_terms_that_can_be_used(
    stack: contextlib.AsyncExitStack, tmp_path: Path
) -> None:
    book = await book_of(US)
    ours = await opened(stack, home_in(tmp_path / "home"), book)
    theirs = await opened(stack, home_in(tmp_path / "seller", b"\4" * 32), await book_of(SELLER), min_deposit="2usd")
    tills = {SELLER.did: Till(await book_of(SELLER), theirs.channels, theirs.rail, theirs.wanted, _never)}

    def opening(place: Place) -> Opening:
        lines: Any = {did: Line(till) for did, till in tills.items()}
        return Opening(book, ours.channels, lines.get, place, ours.token, ours.chain.address, _never)

    place = ours.chain.place
    with pytest.raises(NotAPeer):
        await opening(place).open(Did(Identity(b"\5" * 32).did))
    with pytest.raises(NoTerms, match="network is eip155:31337, and this node's is eip155:1"):
        await opening(Place(1, place.contract)).open(SELLER.did)
    with pytest.raises(TooLittleForPeer, match=r"from 2\.000000usd on"):
        await opening(place).open(SELLER.did, 1_999_999)
    key = await opening(place).open(SELLER.did, 2_000_000)
    record = ours.channels.record(key)
    assert record is not None
    assert (record.record.receiver, record.record.wallet) == (theirs.chain.address, ours.chain.address)
    # Other terms come too late for it.
    tills[SELLER.did]._wanted = evolve(theirs.wanted, withdraw_delay=1_000)
    assert await opening(place).open(SELLER.did) == key
    assert ours.channels.record(key) == record


async def _never(*_: object) -> None:
    raise AssertionError("nobody asks for this")
