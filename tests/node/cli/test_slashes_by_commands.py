"""A stake is slashed by commands alone: drafted, signed by hand, brought, answered, upheld, carried out and fetched."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.rails.stablecoin.keys import create_keystore
from tests.chain import Anvil
from tests.integration.network import PRICE
from tests.node.cli.conftest import Idlemesh
from tests.node.cli.test_wallet_of_a_node import DAY_S, PASSPHRASE, background, blocks, owner_s, up


@pytest.fixture
def going(chain: Anvil) -> Iterator[Anvil]:
    with blocks(chain):
        yield chain


class Case:
    """A seller with 100 dollars at stake, a buyer that was cheated, and three arbiters without nodes."""

    def __init__(self, folder: Path, chain: Anvil, idlemesh: Idlemesh) -> None:
        self.folder, self.chain, self.idlemesh = folder, chain, idlemesh
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text(PASSPHRASE + "\n")
        self.arbiters = [self._arbiter(number) for number in range(3)]
        self.bond = ""

    def _arbiter(self, number: int) -> str:
        home = self.folder / f"arbiter{number}"
        home.mkdir()
        secret = bytes(31) + bytes([number + 1])
        return "0x" + create_keystore(home / "wallet.json", PASSPHRASE, secret=secret, cost=2).hex()

    def do(self, who: str, *arguments: object) -> Any:
        """A command of the wallet in somebody's home, as JSON."""
        return self.idlemesh("wallet", *arguments, "--home", self.folder / who, "--json").json()

    def refused(self, who: str, *arguments: object) -> str:
        """Why a command does nothing."""
        said = self.idlemesh("wallet", *arguments, "--home", self.folder / who)
        assert said.status == 1, said.out
        return said.err

    def shown(self, who: str, *arguments: object) -> str:
        said = self.idlemesh(*arguments, "--home", self.folder / who)
        assert said.status == 0, said.err
        return said.out

    def signed(self, file: Path, *arbiters: int) -> list[Path]:
        """Copies of a statement, each signed by one arbiter offline."""
        copies = [Path(shutil.copy(file, file.with_suffix(f".{number}"))) for number in arbiters]
        for number, copy in zip(arbiters, copies, strict=True):
            said = self.do(f"arbiter{number}", "slash", "sign", copy, "--passphrase-file", self.passphrase)
            assert [one.lower() for one in said["signatures"]] == [self.arbiters[number]]
        return copies

    def proposed(self, name: str) -> Path:
        """The evidence of a slash of 50 dollars that was proposed, of which 30 are the buyer's damage."""
        evidence, file = self.folder / name, self.folder / f"{name}.json"
        evidence.write_text(f"the receipt of {name}")
        buyer = self.do("buyer", "address")["address"]
        said = ("--buyer", buyer, "--damage", "30usd", "--amount", "50usd", "--days", 90)
        self.do("buyer", "slash", "draft", self.bond, evidence, file, *said)
        brought = self.do("buyer", "slash", "bring", *self.signed(file, 0, 2))
        assert (brought["act"], brought["state"]) == ("propose a slash", "settled")
        return evidence

    def running(self, who: str = "seller", *arguments: object) -> dict[str, Any]:
        (slash,) = self.do(who, "slash", "list", *arguments)["slashes"]
        return dict(slash)


def test_a_stake_is_slashed_by_commands_alone(going: Anvil, tmp_path: Path, idlemesh: Idlemesh) -> None:
    sold = owner_s(going, tmp_path / "seller", 200) | {"sell": {"price": PRICE, "open_credit": "0usd"}}
    case, bought = Case(tmp_path, going, idlemesh), owner_s(going, tmp_path / "buyer", 10)
    with background() as loop, up(loop, tmp_path / "seller", sold), up(loop, tmp_path / "buyer", bought):
        named = [word for arbiter in case.arbiters for word in ("--arbiter", arbiter)]
        case.bond = case.do("seller", "bond", "100usd", *named, "--notice", 1)["bond"]
        statements_travel_by_hand(case)
        who_does_not_answer_loses_its_stake(case)
        who_answers_is_judged_once_more(case)
        arbiters_take_back_what_was_a_mistake(case)


def statements_travel_by_hand(case: Case) -> None:
    folder = case.folder
    (folder / "receipt").write_text("something")
    draft = ("slash", "draft", case.bond, folder / "receipt", folder / "draft.json")
    assert "say who was harmed" in case.refused("buyer", *draft)
    assert "is no dollar amount" in case.refused("buyer", *draft, "--buyer", "0x12", "--damage", "1sat")
    assert "was ever locked" in case.refused("buyer", "slash", "draft", "0x" + "1" * 64, *draft[3:], "--dismiss")
    said = ("--buyer", case.arbiters[0], "--damage", "1usd")
    assert "stake, which is 100.000000usd" in case.refused("buyer", *draft, *said, "--amount", "100.000001usd")
    words = case.shown("buyer", "wallet", *draft, *said)
    assert "0 of the 2 signatures that it needs" in words
    assert "damage    1.000000usd" in words
    assert "is there already: name another file" in case.refused("buyer", *draft, *said)
    (one,) = case.signed(folder / "draft.json", 1)
    assert "1 of the 2 signatures that it needs are there" in case.refused("buyer", "slash", "bring", one)
    sign = ("slash", "sign", folder / "draft.json", "--passphrase-file", case.passphrase)
    assert "is none of the bond's arbiters" in case.refused("buyer", *sign)
    changed = json.loads((folder / "draft.json").read_text()) | {"bond": "0x" + "0" * 64}
    (folder / "changed.json").write_text(json.dumps(changed))
    assert "something was changed" in case.refused("arbiter0", "slash", "sign", folder / "changed.json")
    far = json.loads((folder / "draft.json").read_text()) | {"deadline": 2**40 - 1}
    (folder / "far.json").write_text(json.dumps(far))
    words = case.shown("arbiter0", "wallet", "slash", "sign", folder / "far.json", *sign[3:])
    assert "until     for ever" in words
    assert words.index(far["contract"]) < words.index("1 of the 2 signatures that it needs")
    (folder / "changed.json").write_text("no JSON")
    assert "it is not JSON" in case.refused("arbiter0", "slash", "sign", folder / "changed.json")
    assert "No slash is running" in case.shown("seller", "wallet", "slash", "list")


def who_does_not_answer_loses_its_stake(case: Case) -> None:
    evidence = case.proposed("first")
    slash = case.running()
    assert case.running("buyer", "--bond", case.bond) == slash
    assert (slash["state"], slash["amount"], slash["damage"]) == ("proposed", "50.000000usd", "30.000000usd")
    (row,) = case.do("seller", "bond")["bonds"]
    assert (row["held_for_slashes"], row["slashes"]) == ("50.000000usd", [slash])
    warning = "Arbiters want to take 50.000000usd of the bond"
    for command in (("wallet", "bond"), ("wallet", "slash", "list"), ("status",)):
        assert warning in case.shown("seller", *command)
    assert warning not in case.shown("buyer", "status")
    end = ("slash", "end", evidence, "--bond", case.bond)
    assert "the seller may still answer until" in case.refused("buyer", *end)
    case.chain.pass_time(DAY_S)
    late = case.refused("seller", "slash", "answer", evidence, evidence)
    assert "the time for an answer was over" in late
    assert case.do("buyer", *end)["act"] == "carry out a slash"
    assert "Slashes have left 30.000000usd" in case.shown("buyer", "wallet", "slash", "list", "--bond", case.bond)
    paid = case.do("buyer", "slash", "pay-out")
    assert (paid["state"], paid["amount"]) == ("settled", "30.000000usd")
    assert case.do("buyer", "address")["dollars"] == "40.000000usd"
    assert "left nothing" in case.refused("buyer", "slash", "pay-out")


def who_answers_is_judged_once_more(case: Case) -> None:
    evidence = case.proposed("second")
    (answer := case.folder / "answer").write_text("it was the weather")
    draft = ("slash", "draft", case.bond, evidence, case.folder / "uphold.json", "--uphold")
    assert "has not answered" in case.refused("buyer", *draft)
    assert case.do("seller", "slash", "answer", evidence, answer)["state"] == "settled"
    assert case.running()["state"] == "answered"
    assert "it was answered; they may uphold that from" in case.shown("seller", "wallet", "bond")
    case.do("buyer", *draft)
    signed = case.signed(case.folder / "uphold.json", 0, 1)
    assert "may still answer something else until" in case.refused("buyer", "slash", "bring", *signed)
    case.chain.pass_time(DAY_S)
    assert case.do("buyer", "slash", "bring", *signed)["act"] == "uphold a slash"
    (row,) = case.do("seller", "bond")["bonds"]
    assert (row["locked"], row["slashes"]) == ("0.000000usd", [])
    assert case.do("seller", "slash", "pay-out", case.do("buyer", "address")["address"])["amount"] == "30.000000usd"


def arbiters_take_back_what_was_a_mistake(case: Case) -> None:
    case.do("seller", "bond", "60usd")
    evidence = case.proposed("third")
    case.do("buyer", "slash", "draft", case.bond, evidence, case.folder / "dismiss.json", "--dismiss")
    back = case.do("seller", "slash", "bring", *case.signed(case.folder / "dismiss.json", 1, 2))
    assert back["act"] == "dismiss a slash"
    (row,) = case.do("seller", "bond")["bonds"]
    assert (row["counts"], row["slashes"]) == ("60.000000usd", [])
