"""A search that may take minutes."""

import asyncio

import pytest

from node.exchange.searching import Search


async def test_all_who_ask_meanwhile_get_what_one_search_finds() -> None:
    begun, goes_on = 0, asyncio.Event()

    async def find() -> int:
        nonlocal begun
        begun += 1
        await goes_on.wait()
        return begun

    search = Search(find)
    assert await search.ask(0) is None
    asking = asyncio.gather(search.ask(60), search.ask(60))
    goes_on.set()
    assert set(await asking) == {1}
    assert await search.ask(60) == 2


async def test_a_search_that_fails_says_why_and_the_next_begins_anew() -> None:
    async def find() -> int:
        raise ValueError("no")

    search = Search(find)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await search.ask(60)


async def test_a_search_ends_with_its_owner() -> None:
    ended = False

    async def find() -> bool:
        nonlocal ended
        try:
            return await asyncio.Event().wait()
        finally:
            ended = True

    search = Search(find)
    assert await search.ask(0.001) is None
    await search.close()
    assert ended
