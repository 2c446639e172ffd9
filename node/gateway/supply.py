"""What there is to answer with: this machine's models, the open offers of peers, remote backends, as candidates."""

from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen

from ledger.codec import Malformed
from ledger.identity import Did
from ledger.money import Amount
from ledger.records import Offer, Signed
from node.engine.port import Engine
from node.engine.remote import REMOTE
from node.engine.stock import State
from node.exchange.book import Book
from node.exchange.buyer import Buyer
from node.exchange.purchase import Ask, NotPlaced
from node.gateway.remotes import Remotes
from node.gateway.sources import BoughtSource
from node.market.candidates import Candidate, Route, quality_of
from node.mesh.static import NamedPeers, NoTokenizerToBeHad
from node.models.catalogue import Catalogue, NoSuchModel
from node.models.quantization import TIERS, UnknownTier
from node.models.quantization import rank as tier_rank
from node.models.tokenizer import Tokenizer
from node.wire.messages import Refused, Unreachable
from verify.reputation import score

AUTO: Final = "auto"
_DIGEST_NAME: Final = "sha256:"


@frozen
class Local:
    """A model on this machine."""

    engine: Engine
    tokenizer: Tokenizer
    name: str
    state: Callable[[], State] = lambda: "loaded"


class Supply:
    """Local models, peers' offers and remote backends."""

    def __init__(
        self,
        book: Book,
        locals_: Sequence[Local],
        catalogue: Catalogue,
        peers: NamedPeers,
        buyer: Buyer,
        remotes: Remotes,
        bonded: Callable[[Did], int] = lambda _: 0,
    ) -> None:
        """`bonded` is what of a seller's bond counts here, in uusd."""
        self._bonded = bonded
        self.remotes: Final = remotes
        self._book = book
        self._locals = {local.engine.manifest.digest: local for local in locals_}
        self._catalogue = catalogue
        self._peers = peers
        self._buyer = buyer

    def models(self) -> list[tuple[str, str]]:
        """The names that can be asked for, each with who has it: `local` or a seller's did."""
        names = {local.name: "local" for local in self._locals.values()}
        for offer in self._peers.offers():
            names.setdefault(self.name_of(offer.record.model), offer.signer)
        for remote in self.remotes.names():
            names.setdefault(remote, "remote")
        return list(names.items())

    def name_of(self, model: bytes) -> str:
        """What the owner's catalogue calls a model; a stranger's goes by its digest, whatever its seller says."""
        entry = self._catalogue.entry(model)
        return entry.name if entry else _DIGEST_NAME + model.hex()

    def wished(self, name: str) -> frozenset[bytes] | None:
        """The digests that a model's name stands for; None for any, empty for a name that nobody knows."""
        if name == AUTO:
            return None
        if name.startswith(_DIGEST_NAME):
            known = {*self._locals, *(offer.record.model for offer in self._peers.offers())}
            known.update(remote.model for remote in self.remotes.candidates())
            return frozenset(digest for digest in known if digest.hex() == name.removeprefix(_DIGEST_NAME))
        family, colon, tier = name.partition(":")
        try:
            if colon:
                return frozenset(self._catalogue.family(family, tier))
            return frozenset({self._catalogue.find(name)}) | self.remotes.named(name)
        except (NoSuchModel, UnknownTier):
            return self.remotes.named(name)

    def local_candidates(self) -> list[Candidate]:
        """This machine's models."""
        return [
            Candidate(
                digest,
                local.name,
                quality(local.engine.manifest.parameters, local.engine.manifest.quantization),
                "self",
                local.engine.context,
            )
            for digest, local in self._locals.items()
            if local.state() != "changed"
        ]

    def troubles(self, wished: frozenset[bytes] | None) -> list[str]:
        """Why local models that are wished for (None: any) are no candidates."""
        gone = [one for digest, one in self._locals.items() if wished is None or digest in wished]
        why = "its file is not what it was when the node started; start the node again"
        return [f"this machine ({one.name}): {why}" for one in gone if one.state() == "changed"]

    def absent_peers(self, route: Route) -> list[str]:
        """Why named peers offer nothing on this route: those that sell nothing now, and those that cannot be asked."""
        if route not in ("auto", "peers"):
            return []
        if route == "peers" and not self._peers.dids:
            return ["no peers are named: idlemesh up --peer DID@URL"]
        paused = [f"{did} sells nothing now: {why}" for did, why in self._peers.paused.items()]
        return paused + [f"{did} is not there now: {why}" for did, why in self._peers.trouble.items()]

    def readiest(self, candidates: list[Candidate]) -> list[Candidate]:
        """Local candidates: those first that can begin at once, then those that must be loaded; else as given."""

        def wait(candidate: Candidate) -> int:
            local = self._locals[candidate.model]
            if not local.engine.free_slots():
                return 2
            return 0 if local.state() == "loaded" else 1

        return sorted(candidates, key=wait)

    def other_candidates(self) -> list[Candidate]:
        """The open offers of the named peers, with what is known of their sellers, and the remote backends."""
        return [*(self._peer_candidate(offer) for offer in self._peers.offers()), *self.remotes.candidates()]

    def _peer_candidate(self, offer: Signed[Offer]) -> Candidate:
        said = offer.record
        standing = self._book.experience.standing(offer.signer)
        return Candidate(
            model=said.model,
            name=self.name_of(said.model),
            quality=quality(said.parameters, said.quantization),
            # What a peer has computed by somebody else, that somebody reads, whoever the peer is.
            relation="anyone" if said.engine.backend == REMOTE else "named",
            context=said.context,
            offer=offer,
            reputation=score(standing.history),
            condemned=standing.history.condemned,
            bond=Amount(self._bonded(offer.signer), "uusd"),
            ways=self._book.ways_to_pay(offer.signer, said.rails, said.price.unit),
            paid_on_the_way=self._buyer.pays_on_the_way(offer.signer),
            tokens_per_s=standing.speed.tokens_per_s,
            first_token_ms=standing.speed.first_token_ms,
        )

    def local(self, model: bytes) -> Local:
        """A local model."""
        return self._locals[model]

    def spent_today(self) -> dict[str, int]:
        """What this node spent since midnight UTC, and what its open orders may still cost, by unit."""
        spent = self._book.spent_today()
        remotes = self.remotes.spent_today()
        return {unit: spent.get(unit, 0) + remotes.get(unit, 0) for unit in {*spent, *remotes}}

    async def tokenizer_for(self, candidate: Candidate) -> Tokenizer:
        """The tokenizer of a candidate's model. Raises NoTokenizerToBeHad."""
        if candidate.remote is not None:
            tokenizer = self.remotes.backend(candidate).tokenizer
            if tokenizer is None:
                raise NoTokenizerToBeHad(candidate.name)
            return tokenizer
        if candidate.model in self._locals:
            return self._locals[candidate.model].tokenizer
        if candidate.offer is None:
            raise NoTokenizerToBeHad(candidate.name)
        return await self._peers.tokenizer(candidate.offer.record.tokenizer, candidate.seller)

    def buy(self, candidate: Candidate, ask: Ask, tokenizer: Tokenizer) -> BoughtSource:
        """Place an order with a peer. Raises NotPlaced when it cannot even be tried."""
        peer = self._peers.dial(candidate.seller) if candidate.seller else None
        if peer is None or candidate.offer is None:
            raise NotPlaced("it is not among the named peers")
        offer = self._peers.in_turn(candidate.offer)
        return BoughtSource(self._buyer.buy(peer, offer, ask, tokenizer), offer.signer)

    def is_of_several(self, candidate: Candidate) -> bool:
        """Whether several processes of its seller make this offer: where one fails, another may not."""
        return candidate.offer is not None and len(self._peers.alike(candidate.offer)) > 1

    async def renewed(self, candidate: Candidate) -> Candidate | None:
        """The same candidate with the offer that its seller makes now; None if it makes no other."""
        if candidate.seller is None or candidate.offer is None:
            return None
        of_several = self.is_of_several(candidate)
        try:
            await self._peers.refresh(candidate.seller)
        except (Refused, Unreachable, Malformed):
            return None  # the background refresh keeps trying, and says what is wrong
        for offer in self._peers.offers():
            same = (offer.signer, offer.record.model) == (candidate.seller, candidate.model)
            if same and (of_several or offer.digest != candidate.offer.digest):
                return self._peer_candidate(offer)
        return None


def quality(parameters: int, quantization: str) -> float:
    """A rough quality of a model, 0..1."""
    try:
        tier = 1 - tier_rank(quantization) / (len(TIERS) - 1)
    except UnknownTier:
        tier = 0.0
    return quality_of(parameters, tier)
