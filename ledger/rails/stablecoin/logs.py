"""Events of a channels contract: asked for in spans that endpoints grant, and read strictly."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeVar

from attrs import frozen

from ledger.rails.stablecoin.contracts import (
    CONFIG,
    CREATED,
    DEPOSITED,
    REFUNDED,
    WITHDRAWN,
    Malformed,
    config_read,
    decoded,
)
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.rails.stablecoin.errors import ChainError, Unreachable
from ledger.rails.stablecoin.rpc import Endpoint, Said, Silent, digest, hexed, octets, quantity

IDS_AT_ONCE: Final = 64  # channels in one question: some endpoints take no more
_MAX_EVENTS: Final = 20_000
_LEAST_SPAN: Final = 16  # blocks: an endpoint that does not even grant these is of no use

T = TypeVar("T")
Kind = Literal["created", "deposited", "refunded", "withdrawn"]
_KINDS: Final[dict[bytes, tuple[Kind, list[str]]]] = {
    CREATED: ("created", [CONFIG]),
    DEPOSITED: ("deposited", ["uint128", "uint128"]),
    REFUNDED: ("refunded", ["uint128"]),
    WITHDRAWN: ("withdrawn", ["uint128"]),
}


@frozen
class Event:
    """What happened to a channel: `amount` of the token's units came in or went, or `config` was opened."""

    channel: bytes
    kind: Kind
    block: int
    amount: int = 0
    config: ChannelConfig | None = None


async def events(
    endpoint: Endpoint, contract: bytes, first: int, last: int, span: int, channels: Sequence[bytes] | None = None
) -> AsyncIterator[list[Event]]:
    """From the last block back to the first, each part in the order of the chain; None: those of all channels.

    Raises as `in_spans` does.
    """

    async def part(begin: int, end: int) -> list[Event]:
        return await _part(endpoint, contract, begin, end, channels)

    async for found in in_spans(endpoint, first, last, span, part):
        yield found


async def in_spans(
    endpoint: Endpoint, first: int, last: int, span: int, ask: Callable[[int, int], Awaitable[T]]
) -> AsyncIterator[T]:
    """What `ask` says of each span of blocks, from the last back to the first; shorter ones where they are refused.

    Raises Silent, Unreachable (not even short spans are granted).
    """
    while last >= first:
        begin = max(first, last - span + 1)
        try:
            found = await ask(begin, last)
        except Said as error:
            if span <= _LEAST_SPAN:
                raise Unreachable(f"{endpoint.host} gives no events: {error}") from None
            span //= 2
        else:
            yield found
            last = begin - 1


async def all_together(
    endpoints: Sequence[Endpoint], ask: Callable[[Endpoint], Awaitable[dict[bytes, T]]]
) -> dict[bytes, T]:
    """What all endpoints know: for what one may hide, and none can invent.

    Raises Unreachable: none has said all that it knows.
    """
    found: dict[bytes, T] = {}
    why: ChainError | None = Unreachable("none is configured")
    for endpoint in endpoints:
        try:
            found |= await ask(endpoint)
        except (Silent, Unreachable) as error:
            why = why and error
        else:
            why = None
    if why is not None:
        raise Unreachable(str(why))
    return found


async def _part(
    endpoint: Endpoint, contract: bytes, first: int, last: int, channels: Sequence[bytes] | None
) -> list[Event]:
    if first > last:
        return []
    topics: list[list[str]] = [[hexed(each) for each in _KINDS]]
    if channels is not None:
        topics.append([hexed(each) for each in channels])
    asked = {"address": hexed(contract), "fromBlock": hexed(first), "toBlock": hexed(last), "topics": topics}

    def parse(found: Any) -> list[Event]:
        if not isinstance(found, list) or len(found) > _MAX_EVENTS:
            raise Malformed("not a list of events")
        read = [_event(each, contract) for each in found]
        for each in read:
            if not first <= each.block <= last or (channels is not None and each.channel not in channels):
                raise Malformed("events that were not asked for")
        return read

    return await endpoint.ask("eth_getLogs", asked, parse=parse)


def _event(found: Any, contract: bytes) -> Event:
    if not isinstance(found, dict) or octets(found.get("address")) != contract or found.get("removed"):
        raise Malformed("not an event of the contract")
    topics = found.get("topics")
    if not isinstance(topics, list) or len(topics) < 2 or digest(topics[0]) not in _KINDS:
        raise Malformed("not an event that was asked for")
    kind, types = _KINDS[digest(topics[0])]
    values = decoded(types, octets(found.get("data")))
    channel, block = digest(topics[1]), quantity(found.get("blockNumber"))
    if kind == "created":
        return Event(channel, kind, block, config=config_read(values[0]))
    return Event(channel, kind, block, amount=values[0])
