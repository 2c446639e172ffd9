"""What is sold to strangers: quotes before, answers after, and the owner first."""

from collections.abc import AsyncIterator, Callable

import pytest
from attrs import evolve

from ledger.money import Price
from node.engine.memory import MemoryEngine
from node.engine.port import EngineBusy, EngineFailed, Job
from node.exchange.sale import Ware
from node.gateway.question import ContextExceeded, Question, UnknownModel, Unservable
from node.gateway.shop import Counter, HandedBack, Quote, Shop
from node.models.tokenizer import Tokenizer
from node.wire.messages import Refused
from tests.node.trading import HOT, PRICE, PROMPT, SEED, engine_of
from verify.steering import Steering

# After some 30 tokens, where the second `e` may be, there are too many ways to read the text.
EXPLODING = 'root ::= ([a-z ]{1,10} [a-z. ]{1,50} "e"){1,50}'
Open = Callable[..., Shop]


def question(max_tokens: int | None = 8, model: str = "memory", seed: int = SEED) -> Question:
    return Question(
        messages=(),
        model=model,
        sampling=HOT,
        max_tokens=max_tokens,
        privacy="public",
        route="local",
        seed=seed,
        prompt=PROMPT,
    )


@pytest.fixture
async def engine(tokenizer: Tokenizer) -> AsyncIterator[MemoryEngine]:
    engine = engine_of(tokenizer)
    yield engine
    await engine.close()


@pytest.fixture
def shop(tokenizer: Tokenizer, engine: MemoryEngine) -> Open:
    def opened(refusal: Refused | None = None, price: Price = PRICE) -> Shop:
        return Shop([Ware(engine, tokenizer, "memory", price)], "did:key:me", lambda: refusal, 16)

    return opened


async def test_a_quote_is_for_the_prompt_once_and_for_each_answer_at_its_longest(shop: Open) -> None:
    quote = await shop().quote([question(), question(seed=2)])
    assert quote.most == 5 + 2 * 2 * 8


async def test_who_does_not_say_how_long_gets_the_owners_default(shop: Open) -> None:
    assert (await shop().quote([question(None)])).most_tokens == 16


async def test_what_does_not_fit_or_is_not_sold_has_no_price(shop: Open) -> None:
    with pytest.raises(ContextExceeded):
        await shop().quote([question(5_000)])
    with pytest.raises(UnknownModel):
        await shop().quote([question(model="other")])


async def test_an_answer_counts_its_tokens_as_it_goes(shop: Open) -> None:
    open_shop = shop()
    quote = await open_shop.quote([question()])
    counter = Counter(quote, "did:pkh:x", open_shop.me)
    with open_shop.serving(counter):
        answer = await counter.answer(question())
        await answer.collect()
        assert answer.ending is not None
        assert counter.tokens == answer.ending.tokens == 8
        assert counter.cost == quote.most


async def test_nothing_is_sold_while_the_owner_needs_the_machine(shop: Open) -> None:
    paused = shop(Refused("not_selling", "the owner needs it"))
    with pytest.raises(Unservable, match="the owner needs it"):
        await paused.wait_for_slot(await paused.quote([question()]))


async def test_a_full_machine_says_so_before_anything_is_paid(shop: Open, engine: MemoryEngine) -> None:
    open_shop = shop()
    quote = await open_shop.quote([question()])
    work = engine.generate(Job(PROMPT, HOT, SEED, 100))
    await anext(work)
    with pytest.raises(EngineBusy):
        await open_shop.wait_for_slot(quote)
    await work.aclose()
    await open_shop.wait_for_slot(quote)


async def test_what_runs_is_cut_when_the_owner_is_back(shop: Open) -> None:
    open_shop = shop()
    quote: Quote = await open_shop.quote([question(200)])
    counter = Counter(quote, "did:pkh:x", open_shop.me)
    with open_shop.serving(counter):
        answer = await counter.answer(question(200))
        open_shop.hand_back()
        with pytest.raises(HandedBack):
            await answer.collect()
        assert 0 < counter.tokens < 200
        assert counter.cost == 2 * counter.tokens, "the prompt is not charged"


async def test_a_grammar_that_cannot_be_followed_is_owed_as_far_as_it_went(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, words=tokenizer.words)
    shop = Shop([Ware(engine, tokenizer, "memory", PRICE)], "did:key:me", lambda: None, 16)
    asked = evolve(question(300), steering=Steering(grammar=EXPLODING))
    counter = Counter(await shop.quote([asked]), "did:pkh:x", shop.me)
    answer = await counter.answer(asked)
    with pytest.raises(EngineFailed):
        await answer.collect()
    assert counter.cost == 5 + 2 * counter.tokens > 5
    assert not counter.failed
    await engine.close()
