"""An order that a seller has taken: what is sold in it, what it costs, and whether it can be done at all."""

import asyncio
from collections.abc import Callable

from attrs import field, frozen

from ledger.account import AccountKey
from ledger.commitments import CHECKPOINT_TOKENS
from ledger.identity import Did
from ledger.money import Price, cost
from ledger.records import Offer, Order, Privacy, Signed
from node.engine.port import Engine
from node.exchange.continuing import ForgedPart, check_part
from node.exchange.recomputing import follow
from node.market.privacy import within
from node.models.grammar import BadGrammar, ForbiddenToken, GrammarGaveUp
from node.models.tokenizer import Tokenizer
from node.wire.messages import Refused, Request
from node.wire.sealing import KeyPair
from verify.sampler import SAMPLER


@frozen
class Elsewhere:
    """Of a ware that another server computes: how private its prompts may be, and, where that server is somebody
    else's, the law it is under and how long it keeps prompts.
    """

    ceiling: Privacy
    jurisdiction: str | None = None
    retention: str | None = None


@frozen
class Ware:
    """A model for sale: the engine that runs it, its tokenizer, its name, its price."""

    engine: Engine
    tokenizer: Tokenizer
    name: str
    price: Price
    is_unchanged: Callable[[], bool] = lambda: True  # whether its weights are still those that the manifest names
    elsewhere: Elsewhere | None = None
    miss: Callable[[], None] = lambda: None  # told when an order is refused because no slot is free


@frozen
class Stand:
    """An offer that can be ordered from, with the prekey that opens its requests."""

    offer: Signed[Offer]
    ware: Ware
    prekey: KeyPair


@frozen(eq=False)
class Sale:
    """One admitted order."""

    order: Signed[Order]
    stand: Stand
    request: Request = field(repr=False)
    key: bytes = field(repr=False)
    cancelled: asyncio.Event = field(factory=asyncio.Event)
    handed_back: asyncio.Event = field(factory=asyncio.Event)  # to be cut at its next checkpoint
    resting: asyncio.Event = field(factory=asyncio.Event)  # waits for pay, and holds no slot meanwhile

    @property
    def buyer(self) -> Did:
        """Who ordered."""
        return self.order.signer

    @property
    def account(self) -> AccountKey:
        """The account that it is paid from."""
        said = self.order.record
        return AccountKey(self.buyer, said.seller, said.rail, self.stand.ware.price.unit)

    @property
    def so_far(self) -> tuple[int, ...]:
        """The answer's earlier part, which the prompt of a continued order ends with."""
        return self.request.prompt[len(self.request.prompt) - self.order.record.start :]

    @property
    def scores(self) -> bool:
        """Whether a claimed answer is to be scored, and none to be generated."""
        return self.order.record.work == "score"

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What is paid at the input price: the prompt, and what a score order claims."""
        return self.request.prompt + self.request.claimed

    @property
    def most_tokens(self) -> int:
        """How many output tokens it may bring."""
        return 0 if self.scores else self.order.record.max_tokens

    def cost(self, tokens: int) -> int:
        """What it costs with so many output tokens."""
        return cost(self.stand.ware.price, len(self.input_ids), tokens)

    def cost_to_next(self, tokens: int) -> int:
        """What it costs up to the checkpoint that follows so many output tokens, or to its end."""
        return self.cost(min(tokens + CHECKPOINT_TOKENS, self.most_tokens))


def check_fit(sale: Sale) -> None:
    """Check an order against the model and engine that it is for. Raises Refused."""
    order, engine, vocabulary = sale.order.record, sale.stand.ware.engine, sale.stand.ware.tokenizer.size
    if sale.stand.ware.elsewhere is not None:
        _check_elsewhere(sale, sale.stand.ware.elsewhere)
    needed = len(sale.input_ids) + sale.most_tokens
    if needed > engine.context:
        raise Refused("too_long", f"{needed} tokens are needed, and the context has {engine.context}")
    if any(i >= vocabulary for i in sale.input_ids):
        raise Refused("malformed", "the prompt has token ids that the model does not have")
    if sale.scores != bool(sale.request.claimed):
        raise Refused("malformed", "an order to score claims token ids, and no other order does")
    if sale.scores:
        _check_scored(sale)
    else:
        _check_continued(sale)
    most = sale.cost(sale.most_tokens)
    if order.max_cost < most:
        raise Refused("max_cost", f"the order may cost {most}, more than its max_cost allows")


def _check_scored(sale: Sale) -> None:
    """Check what is said of the answer to score. Raises Refused."""
    if sale.stand.ware.engine.fingerprint.sampler != SAMPLER:
        raise Refused("failed", "nothing is scored here: the sampler of this model is another one's own")
    if sale.order.record.part_of is not None or sale.request.earlier is not None:
        raise Refused("malformed", "a claimed answer is scored by itself, whatever was before it")
    if sale.order.record.start >= len(sale.request.prompt):
        raise Refused("malformed", "the claimed answer's earlier part leaves no prompt")


def _check_elsewhere(sale: Sale, elsewhere: Elsewhere) -> None:
    """Check that an order may go to the server that computes, and is for what that can do. Raises Refused."""
    if not within(elsewhere.ceiling, sale.order.record.privacy):
        raise Refused("privacy", f"this model is computed elsewhere, and takes prompts up to {elsewhere.ceiling}")
    if sale.scores:
        raise Refused("not_selling", "this model is computed elsewhere, and scores nothing")
    if sale.request.steering.grammar:
        raise Refused("not_selling", "this model is computed elsewhere, and is sold without grammars")


def _check_continued(sale: Sale) -> None:
    """Check what a continued order says of the part before it. Raises Refused."""
    try:
        check_part(sale.order, sale.request)
    except ForgedPart as error:
        raise Refused("forged", f"the order continues no answer: {error}") from None
    if sale.stand.ware.tokenizer.eog.intersection(sale.so_far):
        raise Refused("forged", "the order continues no answer: it was over before")


async def check_grammar(sale: Sale) -> None:
    """Check that the order's grammar can be followed from where the answer stands. Raises Refused."""
    grammar, earlier = sale.request.steering.grammar, () if sale.scores else sale.so_far
    if not grammar:
        return
    try:
        await asyncio.to_thread(follow, sale.stand.ware.tokenizer, grammar, earlier)
    except ForbiddenToken:
        raise Refused("malformed", "the answer's earlier part is none that the grammar allows") from None
    except (BadGrammar, GrammarGaveUp) as error:
        raise Refused("malformed", str(error)) from None
