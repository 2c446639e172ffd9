"""Whatever happens to a wallet's transactions, each happens once at most, and once in the end."""

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.contracts import Call
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.networks import checksummed, network
from tests.chain import Anvil, RpcError
from tests.ledger.rails.stablecoin.channels import key, raw

NUMBERS = st.integers(min_value=0, max_value=3)


class Sending(RuleBasedStateMachine):
    """One wallet sends a wei to each of four addresses; the chain and the process do their worst."""

    chain: ClassVar[Anvil]
    numbers: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        Sending.numbers += 1
        self.loop = asyncio.new_event_loop()
        self.chain.rpc("evm_setAutomine", False)
        self.folder = tempfile.TemporaryDirectory()
        self.wallet: Key = self.new_wallet()
        self.asked: set[int] = set()
        self.forms: list[str] = []
        self.sender = self.opened()

    def new_wallet(self) -> Key:
        made = key(self.chain, ether=0)
        self.chain.rpc("anvil_setBalance", checksummed(made.address), hex(10**18))
        return made

    def opened(self) -> Chain:
        return self.loop.run_until_complete(
            Chain.open(
                network("anvil"),
                [self.chain.url],
                Path(self.folder.name),
                self.wallet,
                contract=raw(self.chain.deployed.channels),
                stuck_s=0,
                poll_s=3600,
            )
        )

    def target(self, number: int) -> bytes:
        return Sending.numbers.to_bytes(10, "big") + self.wallet.address[:9] + bytes((number,))

    def given(self, number: int) -> int:
        return int(self.chain.rpc("eth_getBalance", checksummed(self.target(number)), "latest"), 16)

    @rule(number=NUMBERS)
    def submits(self, number: int) -> None:
        self.asked.add(number)
        self.loop.run_until_complete(self.sender.submit(bytes((number,)), Call(self.target(number), b"", 1)))

    @rule()
    def tends(self) -> None:
        self.note_forms()
        self.loop.run_until_complete(self.sender.tend())

    def note_forms(self) -> None:
        for kept in Path(self.folder.name).glob("outbox-*.json"):
            self.forms += ["0x" + each["raw"] for each in json.loads(kept.read_text())["waiting"]]

    @precondition(lambda self: self.forms)
    @rule(which=st.integers(min_value=0))
    def an_older_form_is_mined(self, which: int) -> None:
        for waiting in self.chain.pending():
            self.chain.drop(waiting)
        with contextlib.suppress(RpcError):
            self.chain.rpc("eth_sendRawTransaction", self.forms[which % len(self.forms)])
        self.chain.mine()

    @rule(blocks=st.integers(min_value=1, max_value=2))
    def mines(self, blocks: int) -> None:
        self.chain.mine(blocks)

    @precondition(lambda self: self.chain.pending())
    @rule(which=st.integers(min_value=0))
    def forgets(self, which: int) -> None:
        waiting = self.chain.pending()
        self.chain.drop(waiting[which % len(waiting)])

    @rule()
    def replaces_a_block(self) -> None:
        self.chain.mine()
        self.chain.reorganise(1)

    @rule()
    def crashes(self) -> None:
        self.loop.run_until_complete(self.sender.close())
        self.sender = self.opened()

    @rule()
    def another_program_uses_the_key(self) -> None:
        self.chain.rpc("anvil_impersonateAccount", checksummed(self.wallet.address))
        self.chain.rpc("eth_sendTransaction", {"from": checksummed(self.wallet.address), "to": "0x" + "77" * 20})

    @invariant()
    def nothing_happens_twice(self) -> None:
        assert all(self.given(number) <= 1 for number in self.asked)

    def teardown(self) -> None:
        try:
            for _ in range(8):
                self.tends()
                self.chain.mine(3)
            self.tends()
            for number in self.asked:
                outcome = self.loop.run_until_complete(self.sender.outcome(bytes((number,))))
                assert (outcome.state, self.given(number)) == ("settled", 1)
        finally:
            self.loop.run_until_complete(self.sender.close())
            self.loop.close()
            self.folder.cleanup()
            self.chain.rpc("evm_setAutomine", True)


def test_each_happens_once(chain: Anvil) -> None:
    Sending.chain = chain
    found = settings(
        max_examples=8,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],  # to make a failure smaller would take minutes
    )
    run_state_machine_as_test(Sending, settings=found)
