"""Transactions of effects: one under way for each step of an effect, and answers about it.

Theory of operation. The chain's outbox sends a transaction once for its key, and keeps what became of it; so the keys
follow from the effect's own key, and whoever asks again asks for the same transaction. One that was reverted has done
nothing, but cost gas: a step is tried again under a next key, a few times. Where the chain itself says whether the step
has happened, one that went through may have been lost with its block, and is tried again as well.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from attrs import define, frozen

from ledger.rails.port import Answer
from ledger.rails.stablecoin.chain import Chain, Outcome, State
from ledger.rails.stablecoin.contracts import Call

# A transaction is simulated before it is sent; one that fails so often all the same needs its owner's eyes.
TRIES: Final = 4
# What a transaction may come to without its step having happened.
REVERTED: Final[frozenset[State]] = frozenset({"failed"})
REVERTED_OR_LOST: Final[frozenset[State]] = frozenset({"failed", "settled"})

# What is to be done next for an effect, if that is for us to do.
Act: TypeAlias = Callable[[], Awaitable[Answer]]


@define
class TriedOften(Exception):
    """A step whose transactions were all reverted, or lost with their blocks; nothing of it moved."""

    step: str

    def __str__(self) -> str:
        return f"the {self.step} was sent {TRIES} times and has not happened: look at the wallet's transactions"


@frozen
class Sent:
    """The current transaction of a step: its key in the outbox, and what became of it."""

    key: bytes
    outcome: Outcome

    @property
    def under_way(self) -> bool:
        """Whether it may still be in a block for good, or not."""
        return self.outcome.state in ("waiting", "mined")


async def sent(chain: Chain, about: bytes, step: str, over: frozenset[State] = REVERTED) -> Sent:
    """The transaction of a step about an effect (by its key): the first that is not `over`, sent or not.

    Raises TriedOften, ChainError.
    """
    for turn in range(TRIES):
        key = hashlib.sha256(b"idlemesh transaction\0" + step.encode() + b"\0" + bytes((turn,)) + about).digest()
        outcome = await chain.outcome(key)
        if outcome.state not in over:
            return Sent(key, outcome)
    raise TriedOften(step)


async def submitted(chain: Chain, key: bytes, call: Call, what: str) -> Answer:
    """Send a step's transaction; what moves by it is known when it is deep enough. Raises ChainError."""
    return waits(what, await chain.submit(key, call))


def waits(what: str, outcome: Outcome) -> Answer:
    """The answer while a transaction is not deep enough, for people with where to look for it."""
    where = f" in transaction 0x{outcome.hash.hex()}" if outcome.hash else ""
    return Answer("unknown", why=f"the {what} is under way{where}")
