"""Channels found again from the chain alone: their configs are in the events that opened them."""

from attrs import frozen

from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.rails.stablecoin.logs import Event, all_together, events
from ledger.rails.stablecoin.networks import Network
from ledger.rails.stablecoin.reading import Reading
from ledger.rails.stablecoin.rpc import Endpoint


@frozen
class Found:
    """A channel, and the block in which it was opened first: one that was emptied unclaimed can be opened again."""

    config: ChannelConfig
    opened: int


@frozen
class Finding:
    """Searches the events of one contract, from the last block back to where there were no channels yet."""

    _reading: Reading
    _network: Network
    _place: Place

    async def find_all(self, party: bytes) -> list[Found]:
        """Every channel that an address is a party of, in whatever role. Raises Unreachable."""
        last = (await self._reading.head()).number
        found = await all_together(
            self._reading.endpoints.usable, lambda endpoint: self._found_at(endpoint, last, party)
        )
        return list(found.values())

    async def _found_at(self, endpoint: Endpoint, last: int, party: bytes) -> dict[bytes, Found]:
        found: dict[bytes, Found] = {}
        async for part in events(endpoint, self._place.contract, self._network.since, last, self._network.logs):
            for each in reversed(part):  # the first is the last one to be written down
                if each.config is not None and self._is(each, party):
                    found[each.channel] = Found(each.config, each.block)
        return found

    def _is(self, event: Event, party: bytes) -> bool:
        """Whether it opens a channel of the party; an id that is not its config's is a lie."""
        config = event.config
        if config is None or self._place.channel_id(config) != event.channel:
            return False
        return party in (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer)
