"""A node that asks, with whatever neighbours a test gives it: gateway, buyer and book are the real ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ledger.identity import Did, Identity
from ledger.journal import MemoryJournal
from ledger.records import Offer, open_record
from node.engine.port import Engine
from node.exchange.allowance import Allowance
from node.exchange.auditor import Auditor
from node.exchange.book import Book
from node.exchange.buyer import Buyer
from node.exchange.recollection import Recollection
from node.exchange.settler import Settler
from node.gateway.answer import Answer
from node.gateway.gateway import Gateway
from node.gateway.question import Policy, Question
from node.gateway.remotes import Backend, Remotes
from node.gateway.supply import Local, Supply
from node.mesh.static import NamedPeers
from node.models.catalogue import Catalogue, Entry
from node.models.tokenizers import Tokenizers
from node.ports import ManualClock, SeededEntropy
from node.wire.peer import Peer
from tests.node.trading import HOT, NO_AUDITS, SEED, calibration_of, model

SMALL, LARGE = "village-q4", "city-q8"  # what the owner calls weights 7 and weights 0
ASKED = "Tell me a story about a river."


class Household:
    """The asking node. `close` it at the end."""

    def __init__(
        self,
        tokenizers: Tokenizers,
        digest: bytes,
        clock: ManualClock,
        *,
        engines: Mapping[str, Engine] | None = None,
        neighbours: Mapping[Did, Peer] | None = None,
        policy: Policy | None = None,
        patience_s: float = 5.0,
        remotes: Sequence[Backend] = (),
        bonded: Callable[[Did], int] = lambda _: 0,
    ) -> None:
        identity = Identity((2).to_bytes(32, "little"))
        self.tokenizer = tokenizers.open_own(digest)
        small, large = model(self.tokenizer, 7, quantization="Q4_K_M"), model(self.tokenizer, 0)
        catalogue = Catalogue().add(small.digest, Entry(SMALL, "village", "Q4_K_M"))
        catalogue = catalogue.add(large.digest, Entry(LARGE, "city", "Q8_0"))
        catalogue = catalogue.add(bytes(32), Entry("far-away", "far", "F16"))
        self.neighbours = dict(neighbours or {})
        entropy = SeededEntropy(2)
        self.book = Book(MemoryJournal(identity.did), identity, clock, Recollection(identity.did))
        local = [
            Local(engine, tokenizers.open_own(engine.manifest.tokenizer), name)
            for name, engine in (engines or {}).items()
        ]
        auditor = Auditor(self.book, [one.engine for one in local], calibration_of, tokenizers.open_own)
        self.settler = Settler(self.book, entropy, auditor, NO_AUDITS, self.neighbours.get)
        elsewhere, policy = Remotes(remotes, clock), policy or Policy(busy_wait_s=0.05)
        allowance = Allowance(policy.limits.most_per_day, elsewhere.spent_today)
        self.buyer = Buyer(self.book, entropy, self.settler.settle, patience_s, self.settler, allowance=allowance)
        self.peers = NamedPeers(identity.did, self.neighbours, tokenizers, clock, self.buyer.take_grant)
        self.supply = supply = Supply(self.book, local, catalogue, self.peers, self.buyer, elsewhere, bonded)
        self.gateway = Gateway(supply, entropy, policy)

    async def meet(self) -> None:
        """Fetch every neighbour's offers and credit."""
        for did in self.neighbours:
            await self.peers.refresh(did)

    async def ask(self, **wishes: Any) -> Answer:
        """Ask the gateway; see `question` for the wishes."""
        return await self.gateway.answer(question(**wishes))

    async def told(self, **wishes: Any) -> tuple[Answer, str]:
        """Ask, and read the whole answer."""
        answer = await self.ask(**wishes)
        return answer, await answer.collect()

    def owed(self) -> int:
        """What this node owes to everybody."""
        return sum(account.owed for account in self.book.journal.books.accounts.values())

    async def close(self) -> None:
        await self.buyer.close()
        await self.settler.close()


def question(**wishes: Any) -> Question:
    """A question for the large model, unless said otherwise."""
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": ASKED}],
        "model": LARGE,
        "sampling": HOT,
        "max_tokens": 12,
        "privacy": "internal",
        "route": "auto",
        "seed": SEED,
    }
    return Question(**asked | wishes)


async def did_of(peer: Peer) -> Did:
    """Whose offers these are."""
    return open_record((await peer.offers())[0], Offer).signer
