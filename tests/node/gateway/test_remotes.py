"""Remote backends among the candidates: real servers on real sockets, and a gateway that may ask them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from ledger.money import Price
from node.engine.port import EngineFailed
from node.engine.remote import RemoteChat, RemoteEngine
from node.exchange.sale import Elsewhere
from node.gateway.question import Policy, Unservable
from node.gateway.remotes import Backend, Tokens
from node.market.candidates import Limits, Remote
from node.models.spelling import Spelling
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from tests.node.gateway.conftest import Move
from tests.node.gateway.household import ASKED, LARGE, SMALL
from tests.node.remotes import DONE, SECRET, Handler, Server, client_of, event, refuses, says, sends, serving
from tests.node.trading import Store, engine_of, model, uusd
from verify.steering import Steering

CLOUD = "cloud"
FREE = Price(0, 0, "uusd")
TERMS = Remote(CLOUD, FREE)
COST = Price(1_000_000, 2_000_000, "uusd")

Reach = Callable[..., Awaitable[tuple[Backend, Server]]]


@pytest.fixture
async def text_remote() -> AsyncIterator[Reach]:
    """Reaches a server whose tokenizer is not here."""
    async with AsyncExitStack() as stack:

        async def reach(handler: Handler, terms: Remote = TERMS, **settings: Any) -> tuple[Backend, Server]:
            server = await stack.enter_async_context(serving(handler))
            client = await stack.enter_async_context(client_of(server))
            fields: dict[str, Any] = {"model": b"t" * 32, "quality": 0.9, "context": 4_096, "slots": 2} | settings
            chat = RemoteChat(client, fields.pop("slots"))
            return Backend(terms, speaks=chat, **fields), server

        yield reach


@pytest.fixture
async def token_remote(speaking: Tokenizer) -> AsyncIterator[Reach]:
    """Reaches a server of the large model."""
    async with AsyncExitStack() as stack:

        async def reach(handler: Handler, terms: Remote = TERMS) -> tuple[Backend, Server]:
            server = await stack.enter_async_context(serving(handler))
            client = await stack.enter_async_context(client_of(server))
            engine = RemoteEngine(client, Spelling(speaking.words), model(speaking), context=2_048, slots=2)
            return Backend(terms, engine.manifest.digest, 0.9, 2_048, Tokens(engine, speaking)), server

        yield reach


# A remote that gives text


async def test_a_named_remote_answers_with_the_conversation_as_it_is(move_in: Move, text_remote: Reach) -> None:
    cloud, server = await text_remote(says(["Once", " upon", " a time."]))
    household = await move_in(remotes=[cloud])

    answer, text = await household.told(model=CLOUD, privacy="public")

    assert (text, answer.route, answer.model, answer.degraded) == ("Once upon a time.", "remote cloud", CLOUD, None)
    assert server.asked[0]["messages"] == [{"role": "user", "content": ASKED}]
    assert server.asked[0]["max_tokens"] == 12


async def test_the_counts_are_the_server_s_and_so_is_the_cost(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(says(["Once", " upon", " a time."]), Remote(CLOUD, COST))
    household = await move_in(remotes=[cloud])

    answer, _ = await household.told(model=CLOUD, privacy="public")

    assert answer.ending is not None
    assert (answer.prompt_tokens, answer.ending.tokens, answer.ending.finish) == (7, 3, "stop")
    assert answer.ending.costs == (uusd(7 + 2 * 3),)
    assert household.supply.spent_today() == {"uusd": 13}


async def test_a_stop_string_ends_the_answer_and_the_request(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(sends(event("one tw", chat=True), event("o three", chat=True), end=False))
    household = await move_in(remotes=[cloud])

    answer, text = await household.told(model=CLOUD, privacy="public", stop=("two",))

    assert text == "one "
    assert answer.ending is not None
    assert answer.ending.finish == "stop"
    assert cloud.free_slots() == 2


async def test_more_text_than_was_asked_for_is_not_taken(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(says(["word "] * 100, "length"))
    household = await move_in(remotes=[cloud])

    _, text = await household.told(model=CLOUD, privacy="public", max_tokens=5)

    assert text == "word " * 5


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "plain conversations"),
        ({"steering": Steering(bias=((5, 1_000_000),))}, "plain conversations"),
        ({"steering": Steering(grammar='root ::= "a"')}, "no grammars"),
        ({"logprobs": 2}, "this machine only"),
        ({"prompt": "Once", "messages": []}, "plain conversations"),
        ({"max_tokens": 5_000}, "has a context of 4096"),
    ],
)
async def test_what_a_text_remote_cannot_do_rules_it_out(
    move_in: Move, text_remote: Reach, wishes: dict[str, Any], why: str
) -> None:
    cloud, server = await text_remote(says(["A"]))
    household = await move_in(remotes=[cloud])

    with pytest.raises(Unservable, match=why):
        await household.ask(model=CLOUD, privacy="public", **wishes)
    assert not server.asked


# Privacy, routes, money


@pytest.mark.parametrize("level", ["internal", "confidential", "restricted"])
async def test_a_remote_sees_public_prompts_only(move_in: Move, text_remote: Reach, level: str) -> None:
    cloud, server = await text_remote(says(["A"]))
    household = await move_in(remotes=[cloud])

    with pytest.raises(Unservable):
        await household.ask(model=CLOUD, privacy=level)
    assert not server.asked


async def test_the_owner_may_raise_what_one_remote_sees(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(says(["A"]), Remote(CLOUD, FREE, ceiling="internal"))
    household = await move_in(remotes=[cloud])

    assert (await household.told(model=CLOUD, privacy="internal"))[1] == "A"
    with pytest.raises(Unservable):
        await household.ask(model=CLOUD, privacy="confidential")


@pytest.mark.parametrize("route", ["local", "peers"])
async def test_another_route_does_not_lead_to_a_remote(move_in: Move, text_remote: Reach, route: str) -> None:
    cloud, server = await text_remote(says(["A"]))
    household = await move_in(remotes=[cloud])

    with pytest.raises(Unservable, match=f"the route is {route}"):
        await household.ask(model=CLOUD, privacy="public", route=route)
    assert not server.asked


async def test_the_route_to_remotes_leads_nowhere_else(move_in: Move, text_remote: Reach, speaking: Tokenizer) -> None:
    cloud, _ = await text_remote(says(["A"]))
    here = engine_of(speaking, 7, manifest=model(speaking, 7, quantization="Q4_K_M"))
    household = await move_in({SMALL: here}, remotes=[cloud])

    answer, _ = await household.told(model="auto", privacy="public", route="remotes")

    assert answer.route == "remote cloud"


async def test_a_remote_that_is_too_dear_is_not_asked(move_in: Move, text_remote: Reach) -> None:
    cloud, server = await text_remote(says(["A"]), Remote(CLOUD, COST))
    household = await move_in(remotes=[cloud], policy=Policy(Limits(max_order_cost=uusd(20))))

    with pytest.raises(Unservable, match="for this order, over the most of"):
        await household.ask(model=CLOUD, privacy="public")
    assert not server.asked


async def test_what_remotes_cost_counts_against_the_day_s_limit(
    move_in: Move, text_remote: Reach, clock: ManualClock
) -> None:
    cloud, _ = await text_remote(says(["A"] * 9), Remote(CLOUD, COST))
    household = await move_in(remotes=[cloud], policy=Policy(Limits(max_per_day=uusd(60))))
    await household.told(model=CLOUD, privacy="public")

    with pytest.raises(Unservable, match="today's spending"):
        await household.ask(model=CLOUD, privacy="public")
    clock.advance(86_400)
    await household.told(model=CLOUD, privacy="public")


async def test_what_running_requests_may_cost_counts_too(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(sends(event("A", chat=True), end=False), Remote(CLOUD, COST))
    household = await move_in(remotes=[cloud])
    answer = await household.ask(model=CLOUD, privacy="public")
    assert household.supply.spent_today()["uusd"] > 2 * 12

    await answer.close()

    assert household.supply.spent_today()["uusd"] < 2 * 12


# A remote that gives ids, beside others


async def test_a_remote_with_a_tokenizer_serves_the_model_by_its_name(move_in: Move, token_remote: Reach) -> None:
    cloud, server = await token_remote(says(["A", " river."]), Remote(CLOUD, COST))
    household = await move_in(remotes=[cloud])

    answer, text = await household.told(model=LARGE, privacy="public")

    assert (text, answer.route) == ("A river.", "remote cloud")
    assert answer.ending is not None
    assert answer.ending.costs == (uusd(answer.prompt_tokens + 2 * answer.ending.tokens),)
    assert isinstance(server.asked[0]["prompt"], str)


async def test_this_machine_comes_first(move_in: Move, text_remote: Reach, speaking: Tokenizer) -> None:
    cloud, server = await text_remote(says(["A"]))
    household = await move_in({LARGE: engine_of(speaking)}, remotes=[cloud])

    assert (await household.told(model="auto", privacy="public"))[0].route == "local"
    assert not server.asked


@pytest.mark.parametrize(
    "handler",
    [refuses(500, SECRET), refuses(429), refuses(401, SECRET), sends(DONE), sends(b"data: {\n\n"), refuses(200, "{}")],
    ids=["fails", "busy", "key", "nothing", "garbage", "no stream"],
)
@pytest.mark.parametrize("gives", ["text", "ids"])
async def test_a_remote_that_fails_is_passed_over_and_the_next_one_answers(
    move_in: Move, text_remote: Reach, token_remote: Reach, handler: Handler, gives: str
) -> None:
    broken, _ = await (text_remote if gives == "text" else token_remote)(handler, Remote("broken", FREE))
    sound, _ = await text_remote(says(["fine"]), Remote("sound", COST), quality=0.1)
    household = await move_in(remotes=[broken, sound])

    answer, text = await household.told(model="auto", privacy="public", may_degrade=False)

    assert (text, answer.route) == ("fine", "remote sound")


async def test_where_all_remotes_fail_this_machine_answers_and_says_why(
    move_in: Move, text_remote: Reach, speaking: Tokenizer
) -> None:
    cloud, _ = await text_remote(refuses(500, SECRET))
    here = engine_of(speaking, 7, manifest=model(speaking, 7, quantization="Q4_K_M"))
    household = await move_in({SMALL: here}, remotes=[cloud])

    answer, _ = await household.told(model=CLOUD, privacy="public")

    assert (answer.route, answer.model) == ("local", SMALL)
    assert answer.degraded is not None
    assert "remote cloud (cloud): the remote 'cloud' answers HTTP 500" in answer.degraded
    assert SECRET not in answer.degraded


async def test_a_remote_that_failed_is_left_alone_for_a_while(
    move_in: Move, text_remote: Reach, clock: ManualClock
) -> None:
    cloud, server = await text_remote(refuses(429, headers={"Retry-After": "20"}))
    household = await move_in(remotes=[cloud])
    for _ in range(3):
        with pytest.raises(Unservable, match="busy"):
            await household.ask(model=CLOUD, privacy="public")
    assert len(server.asked) == 1

    clock.advance(21)
    with pytest.raises(Unservable):
        await household.ask(model=CLOUD, privacy="public")
    assert len(server.asked) == 2


async def test_an_answer_that_a_remote_breaks_off_is_continued_by_a_seller_of_the_same_model(
    move_in: Move, token_remote: Reach, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    cloud, _ = await token_remote(sends(event("A"), event(" river")))
    seller = await Store.open(tokenizer, clock)
    household = await move_in(
        None, seller.seller, remotes=[cloud], policy=Policy(Limits(max_output_price=uusd(2_000_000)))
    )

    answer, text = await household.told(model=LARGE, privacy="public", max_tokens=30)

    assert text.startswith("A river")
    assert answer.route == f"remote cloud, {seller.did}"
    assert answer.ending is not None
    assert answer.ending.tokens > 2


async def test_text_that_breaks_off_is_an_error_and_no_whole_answer(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(sends(event("A", chat=True)))
    household = await move_in(remotes=[cloud])
    answer = await household.ask(model=CLOUD, privacy="public")

    with pytest.raises(EngineFailed, match="ended before"):
        await answer.collect()
    assert answer.ending is None


async def test_a_client_that_hangs_up_ends_the_request(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(sends(event("A", chat=True), end=False))
    household = await move_in(remotes=[cloud])
    answer = await household.ask(model=CLOUD, privacy="public")
    assert cloud.free_slots() == 1

    await answer.close()

    assert cloud.free_slots() == 2


async def test_a_full_remote_is_not_asked(move_in: Move, text_remote: Reach) -> None:
    cloud, server = await text_remote(sends(event("A", chat=True), end=False), slots=1)
    household = await move_in(remotes=[cloud])
    first = await household.ask(model=CLOUD, privacy="public")

    with pytest.raises(Unservable, match="no slot free"):
        await household.ask(model=CLOUD, privacy="public")
    assert len(server.asked) == 1
    await first.close()


async def test_remotes_are_listed_among_the_models(move_in: Move, text_remote: Reach) -> None:
    cloud, _ = await text_remote(says(["A"]))
    household = await move_in(remotes=[cloud])

    assert (CLOUD, "remote") in household.gateway.models()


# What a peer has computed elsewhere


async def test_a_peer_that_has_its_answers_computed_elsewhere_sees_public_prompts_only(
    move_in: Move, token_remote: Reach, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    cloud, server = await token_remote(says(["A"]))
    assert isinstance(cloud.speaks, Tokens)
    sold = Elsewhere("confidential", "CH", "none")
    seller = await Store.open(tokenizer, clock, engine=cloud.speaks.engine, elsewhere=sold)
    household = await move_in(None, seller.seller)

    with pytest.raises(Unservable, match="may see prompts up to public"):
        await household.ask(privacy="internal")
    assert not server.asked
    assert (await household.told(privacy="public"))[1] == "A"
