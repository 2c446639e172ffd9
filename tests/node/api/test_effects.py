"""What rails were asked to move is shown to the owner, who can put aside what needs its eyes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import frozen

from ledger.account import AccountKey
from ledger.changes import Authorized, Earned, Funded, Granted, Released, Reserved
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.money import Amount
from ledger.rails import credit
from ledger.rails.scripted import Bank, ScriptedRail
from node.app import Node, run_node
from node.cli import show
from node.cli.accounts import dismiss
from node.cli.client import call
from node.home import Home
from node.owner_client import CallFailed
from tests.node.api.conftest import load_exact
from tests.node.api.running import settings

PEER = Identity(bytes([2]) * 32)
DEBT = 2_000_000


async def silence() -> None:
    """A line on which no answer comes before the wait is over."""
    raise TimeoutError


@frozen
class Payer:
    """A node that owes a peer on a scripted rail."""

    node: Node
    home: Home
    rail: ScriptedRail

    async def accounts(self) -> dict[str, object]:
        return await asyncio.to_thread(call, self.home, lambda client: client.get("/node/v1/accounts"))

    async def shown(self, capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        show.accounts(await self.accounts())
        return capsys.readouterr().out

    async def dismiss(self, effect: str) -> None:
        await asyncio.to_thread(dismiss, effect, self.home.folder, False)

    @property
    def key(self) -> AccountKey:
        return AccountKey(self.node.did, PEER.did, "stablecoin", "uusd")

    async def owe(self) -> None:
        order = bytes(32)
        await self.node.book.post(
            *(
                AccountChanged(self.key, change)
                for change in (
                    Funded(DEBT, 1),
                    Granted(0, DEBT, 1),
                    Reserved(order, DEBT, 9),
                    Earned(order, DEBT),
                    Released(order),
                    Authorized(DEBT),
                )
            )
        )


@pytest.fixture
async def payer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Payer]:
    monkeypatch.setenv("COLUMNS", "200")
    rail = ScriptedRail(Bank(), silence)
    home = Home(tmp_path)
    async with run_node(home, settings(), load_exact, rails=[credit, rail]) as node:
        yield Payer(node, home, rail)


async def test_nothing_is_said_of_effects_where_there_are_none(
    payer: Payer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Under way" not in await payer.shown(capsys)


async def test_what_the_rail_has_not_answered_is_shown_as_unknown(
    payer: Payer, capsys: pytest.CaptureFixture[str]
) -> None:
    payer.rail.performing.append("lose")
    payer.rail.telling.extend(["silent"] * 9)
    await payer.owe()
    await payer.node.effects.step()
    said = await payer.shown(capsys)
    assert "unknown: no answer yet" in said
    assert str(Amount(DEBT, "uusd")) in said
    with pytest.raises(CallFailed, match="asks on until"):
        await payer.dismiss(payer.node.book.journal.books.effects[payer.key].effect.key.hex())


async def test_a_rail_that_contradicts_itself_is_shown_until_its_owner_has_looked(
    payer: Payer, capsys: pytest.CaptureFixture[str]
) -> None:
    payer.rail.performing.append("exaggerate")
    await payer.owe()
    await payer.node.effects.step()
    said = await payer.shown(capsys)
    (key,) = payer.rail.bank.carried_out
    assert f"idlemesh dismiss {key.hex()[:12]}" in said
    assert "it says that 4000001 has moved" in said
    await payer.dismiss(key.hex()[:12])
    assert "Under way" not in await payer.shown(capsys)
    body = await payer.accounts()
    assert (body["balanced"], body["effects"]) == (True, [])


@pytest.mark.parametrize("effect", ["abc", "abcdef"])
async def test_an_effect_that_is_not_there_is_not_put_aside(payer: Payer, effect: str) -> None:
    with pytest.raises(CallFailed, match=r"digits of its id|no payment under way"):
        await payer.dismiss(effect)
