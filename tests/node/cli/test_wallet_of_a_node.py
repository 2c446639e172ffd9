"""The wallets of two running nodes and a chain: what their owners move by hand."""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from ledger.rails.stablecoin.keys import create_keystore
from node.app import run_node
from node.config import load_config
from node.home import Home, Running
from tests.chain import ETHER, Anvil
from tests.integration.network import PRICE, Sections, free_port, write_config
from tests.integration.paying_node import PACE, load_wide
from tests.node.cli.conftest import Idlemesh, Nodes

DOLLAR: Final = 10**6
DAY_S: Final = 86_400
PASSPHRASE: Final = "for tests"
ARBITERS: Final = tuple(f"0x{number:040x}" for number in (0xA1, 0xA2, 0xA3))


@contextlib.contextmanager
def blocks(chain: Anvil) -> Iterator[None]:
    """A chain that goes on, so that transactions become deep."""
    over = threading.Event()

    def mine() -> None:
        while not over.wait(0.1):
            chain.mine()

    miner = threading.Thread(target=mine)
    miner.start()
    try:
        yield
    finally:
        over.set()
        miner.join()


def owner_s(chain: Anvil, folder: Path, dollars: int) -> Sections:
    """A wallet in a home, and the settings for it."""
    folder.mkdir(parents=True)
    wallet = chain.wallet(dollars * DOLLAR, ETHER)
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    create_keystore(folder / "wallet.json", PASSPHRASE, secret=bytes(wallet.key), cost=2)
    there = chain.deployed
    return {
        "stablecoin": {
            "network": "anvil",
            "rpc": [chain.url],
            "contract": there.channels,
            "bonds": there.bonds,
            "passphrase_file": str(folder / "passphrase"),
            "min_deposit": "0.1usd",
        }
    }


@contextlib.contextmanager
def background() -> Iterator[asyncio.AbstractEventLoop]:
    """Where nodes run while commands are given."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def up(
    loop: asyncio.AbstractEventLoop, folder: Path, sections: Sections, peers: Sequence[tuple[str, str]] = ()
) -> Iterator[Running]:
    """A node in its home, which asks the chain all the time."""
    home = Home(folder)
    stack = contextlib.AsyncExitStack()
    running = run_node(home, load_config(write_config(folder, sections, peers, 0), {}), load_wide, pace=PACE)

    def do(work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(60)

    do(stack.enter_async_context(running))
    try:
        yield home.running()
    finally:
        do(stack.aclose())


@pytest.fixture
def going(chain: Anvil) -> Iterator[Anvil]:
    with blocks(chain):
        yield chain


def until(found: Callable[[], Any], so: Callable[[Any], bool]) -> Any:
    """Ask other processes until what they say is so."""
    deadline = time.monotonic() + 30
    while not so(last := found()):
        assert time.monotonic() < deadline, last
        time.sleep(0.05)
    return last


def test_owners_lock_stakes_and_fill_channels_and_take_both_back(
    going: Anvil, tmp_path: Path, idlemesh: Idlemesh
) -> None:
    sold = owner_s(going, tmp_path / "seller", 200) | {"sell": {"price": PRICE, "open_credit": "0usd"}}
    bought = owner_s(going, tmp_path / "buyer", 10) | {"buy": {"arbiters": list(ARBITERS[:2])}}
    with background() as loop, up(loop, tmp_path / "seller", sold) as seller:
        the_stake_is_locked(tmp_path / "seller", idlemesh)
        with up(loop, tmp_path / "buyer", bought, [(seller.did, seller.url)]):
            the_stake_counts(tmp_path / "buyer", idlemesh)
            what_cannot_be_moved_says_what_to_do(tmp_path / "buyer", seller.did, idlemesh)
            a_channel_is_filled_and_emptied(tmp_path / "buyer", seller.did, idlemesh)
        home = Home(tmp_path / "buyer")
        what_is_in_channels_is_told_from_the_ledger(home.folder, seller.did, idlemesh)
        for lost in (home.ledger, *home.chain.iterdir()):
            lost.unlink()
        with up(loop, tmp_path / "buyer", bought, [(seller.did, seller.url)]) as buyer:
            a_channel_is_found_again(tmp_path / "buyer", seller.did, idlemesh)
            what_was_earned_is_claimed(tmp_path, buyer.did, idlemesh)
        the_stake_is_taken_back(tmp_path / "seller", going, idlemesh)


def the_stake_is_locked(folder: Path, idlemesh: Idlemesh) -> None:
    home = "--home", folder
    has = idlemesh("wallet", "address", *home, "--json").json()
    assert (has["network"], has["dollars"], has["coin"]) == ("eip155:31337", "200.000000usd", f"1.{0:018}")
    assert re.search(r"^coin +1\.0{18} ETH$", idlemesh("wallet", "address", *home).out, re.MULTILINE)
    assert "There are no channels" in idlemesh("wallet", "channels", *home).out
    assert "No bond is locked" in idlemesh("wallet", "bond", *home).out
    named = [word for arbiter in ARBITERS for word in ("--arbiter", arbiter)]
    locked = idlemesh("wallet", "bond", "100usd", *named, "--notice", 2, *home, "--json").json()
    assert (locked["act"], locked["state"], locked["quorum"]) == ("lock", "settled", 2)
    assert idlemesh("wallet", "bond", "100usd", *home).out.startswith("lock, bond 0x")
    assert "Found 0" in idlemesh("wallet", "bond", "--find", *home).out
    (row,) = idlemesh("wallet", "bond", *home, "--json").json()["bonds"]
    assert (row["bond"], row["locked"], row["counts"]) == (locked["bond"], "100.000000usd", "100.000000usd")


def the_stake_counts(folder: Path, idlemesh: Idlemesh) -> None:
    home = "--home", folder

    def counts() -> Any:
        bonds = [row["bond"] for row in idlemesh("offers", *home, "--json").json()["offers"]]
        return [(bond["counts"], bond["why_not"]) for bond in bonds if bond is not None]

    until(counts, lambda rows: rows == [("100.000000usd", None)])
    assert "has 100.000000usd at stake (2 of 3 arbiters): 100.000000usd of it counts" in idlemesh("offers", *home).out


def what_cannot_be_moved_says_what_to_do(folder: Path, them: str, idlemesh: Idlemesh) -> None:
    for arguments, why in (
        (("deposit", "did:key:z6Mk", "1usd"), "is not an Ed25519 did:key"),
        (("deposit", them, "1sat"), "this wallet counts in usd"),
        (("deposit", them, "11usd"), "the wallet has 10.000000usd, and 11.000000usd was to be moved"),
        (("claim",), "there is nothing to claim"),
        (("withdraw", them), "no money of this node's is in a channel"),
        (("withdraw", "did:key:z6Mk…abcdef"), "0 channels are with did:key:z6Mk…abcdef"),
        (("withdraw", them, "--give-back"), "has no money in a channel to this node"),
        (("bond", "5usd"), "this node has locked no bond yet"),
        (("unbond",), "this node has locked no bond yet"),
        (("bond", "5usd", "--quorum", "1"), "name each with --arbiter"),
        (("bond", "5usd", "--arbiter", "0x12"), "is no address"),
        (("bond", "5usd", "--arbiter", f"0xA{'a' * 39}"), "a digit was mistyped"),
    ):
        said = idlemesh("wallet", *arguments, "--home", folder)
        assert said.status == 1
        assert why in said.err


def a_channel_is_filled_and_emptied(folder: Path, them: str, idlemesh: Idlemesh) -> None:
    home = "--home", folder

    def channel() -> Any:
        (row,) = idlemesh("wallet", "channels", *home, "--json").json()["channels"]
        return row

    filled = idlemesh("wallet", "deposit", them, "2usd", *home, "--json").json()["effects"]
    assert [(one["kind"], one["amount"]) for one in filled] == [("top_up", "2.000000usd")]
    seen = until(channel, lambda row: bool(row["deposited"] == "2.000000usd" and row["effect"]["state"] == "settled"))
    assert (seen["peer"], seen["direction"], seen["by"]) == (them, "we pay", "node")
    assert (seen["free"], seen["at_risk"]) == ("2.000000usd", "0.000000usd")
    assert "2.000000" in idlemesh("wallet", "channels", *home).out

    shortened = f"{them[:12]}…{them[-6:]}"  # as a terminal shows it
    back = idlemesh("wallet", "withdraw", shortened, "0.5usd", *home, "--json").json()["effects"]
    assert [(one["kind"], one["amount"]) for one in back] == [("refund", "0.500000usd")]
    assert channel()["gone_back"] == "0.500000usd"


def what_is_in_channels_is_told_from_the_ledger(folder: Path, them: str, idlemesh: Idlemesh) -> None:
    (row,) = idlemesh("wallet", "channels", "--home", folder, "--json").json()["channels"]
    assert (row["peer"], row["deposited"], row["gone_back"]) == (them, "2.000000usd", "0.500000usd")


def a_channel_is_found_again(folder: Path, them: str, idlemesh: Idlemesh) -> None:
    home = "--home", folder
    assert "There are no channels" in idlemesh("wallet", "channels", *home).out
    (row,) = idlemesh("wallet", "find", *home, "--json").json()["channels"]
    assert (row["peer"], row["state"], row["unclaimed"]) == (them, "taken_up", "2.000000usd")
    assert "in the ledger" in idlemesh("wallet", "find", *home).out
    row = until(
        lambda: idlemesh("wallet", "channels", *home, "--json").json()["channels"][0],
        lambda row: bool(row["deposited"] == "2.000000usd"),
    )
    assert (row["gone_back"], row["free"]) == ("0.500000usd", "1.500000usd")


def what_was_earned_is_claimed(tmp_path: Path, buyer: str, idlemesh: Idlemesh) -> None:
    home = "--home", tmp_path / "seller"
    answer = ("ask", "Tell me a story.", "--route", "peers", "--max-tokens", 16, "--home", tmp_path / "buyer", "--json")
    until(lambda: idlemesh(*answer), lambda said: bool(said.status == 0 and "did:key" in said.json()["route"]))

    def channel() -> Any:
        (row,) = idlemesh("wallet", "channels", *home, "--json").json()["channels"]
        return row

    # 7 tokens of a prompt at a millionth of a dollar, 16 of an answer at two.
    earned = until(channel, lambda row: bool(row["to_claim"] == row["owed"] == "0.000039usd"))
    (claimed,) = idlemesh("wallet", "claim", *home, "--json").json()["effects"]
    assert (claimed["kind"], claimed["amount"], claimed["peer"]) == ("claim", earned["owed"], buyer)
    until(channel, lambda row: bool(row["paid"] == earned["owed"] and row["effect"] is None))
    back = idlemesh("wallet", "withdraw", buyer, "0.1usd", "--give-back", *home)
    assert f"refund of 0.100000usd, they pay {buyer}" in back.out
    until(channel, lambda row: row["effect"] is None)
    (closed,) = idlemesh("wallet", "claim", buyer, "--close", *home, "--json").json()["effects"]
    assert closed["kind"] == "close"
    until(channel, lambda row: row["free"] == "0.000000usd")


def the_stake_is_taken_back(folder: Path, chain: Anvil, idlemesh: Idlemesh) -> None:
    home = "--home", folder
    assert idlemesh("wallet", "unbond", "40usd", *home, "--json").json()["state"] == "settled"
    early = idlemesh("wallet", "unbond", "--take", *home)
    assert (early.status, "the notice is not over" in early.err) == (1, True)
    (row,) = idlemesh("wallet", "bond", *home, "--json").json()["bonds"]
    assert (row["asked_back"], row["counts"]) == ("40.000000usd", "60.000000usd")
    chain.pass_time(2 * DAY_S)
    assert "done" in idlemesh("wallet", "unbond", "--take", *home).out
    assert idlemesh("wallet", "address", *home, "--json").json()["dollars"] == "140.000039usd"


def test_the_address_is_told_while_the_chain_is_silent(tmp_path: Path, idlemesh: Idlemesh) -> None:
    folder = tmp_path / "owner"
    folder.mkdir()
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    address = create_keystore(folder / "wallet.json", PASSPHRASE, secret=b"\x11" * 32, cost=2)
    nobody = f"http://127.0.0.1:{free_port()}"
    chain = {"network": "anvil", "rpc": [nobody], "passphrase_file": str(folder / "passphrase")}
    with background() as loop, up(loop, folder, {"stablecoin": chain}):
        said = idlemesh("wallet", "address", "--home", folder, "--json").json()
        assert (said["address"].lower(), said["dollars"]) == (f"0x{address.hex()}", None)
        assert "no RPC endpoint answers" in said["trouble"]
        assert "no contract of bonds is known here" in idlemesh("wallet", "bond", "--home", folder).err
        assert "There are no channels" in idlemesh("wallet", "channels", "--home", folder).out


def test_a_node_without_a_wallet_says_so(nodes: Nodes, idlemesh: Idlemesh) -> None:
    for arguments in (("address",), ("claim",)):
        said = idlemesh("wallet", *arguments, "--home", nodes.owner.home.folder)
        assert (said.status, "write a section [stablecoin]" in said.err) == (1, True)
