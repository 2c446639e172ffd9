"""Channels found again from the chain alone: their configs are in the events that opened them."""

from collections.abc import Callable

from attrs import frozen

from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.rails.stablecoin.errors import ChainError, ChannelUnknown, Unreachable
from ledger.rails.stablecoin.logs import Event, events
from ledger.rails.stablecoin.networks import Network
from ledger.rails.stablecoin.reading import Reading
from ledger.rails.stablecoin.rpc import Endpoint, Silent


@frozen
class Finding:
    """Searches the events of one contract, from the last block back to where there were no channels yet."""

    _reading: Reading
    _network: Network
    _place: Place

    async def find(self, channel: bytes) -> ChannelConfig:
        """A channel's config. Raises ChannelUnknown, Unreachable."""
        for config in await self._found([channel], lambda config: True):
            return config
        raise ChannelUnknown(channel)

    async def find_all(self, party: bytes) -> list[ChannelConfig]:
        """Every channel that an address is a party of, in whatever role. Raises Unreachable."""

        def concerns(config: ChannelConfig) -> bool:
            return party in (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer)

        return await self._found(None, concerns)

    async def _found(
        self, channels: list[bytes] | None, wanted: Callable[[ChannelConfig], bool]
    ) -> list[ChannelConfig]:
        """As every endpoint has them together: one may hide some, and none can invent any."""
        last = (await self._reading.head()).number
        found: dict[bytes, ChannelConfig] = {}
        why: ChainError | None = Unreachable("none is configured")
        for endpoint in self._reading.endpoints.usable:
            try:
                found |= await self._found_at(endpoint, last, channels, wanted)
            except (Silent, Unreachable) as error:
                why = why and error
            else:
                why = None
            if channels is not None and len(found) == len(channels):
                break
        if why is not None:
            raise Unreachable(str(why))
        return list(found.values())

    async def _found_at(
        self, endpoint: Endpoint, last: int, channels: list[bytes] | None, wanted: Callable[[ChannelConfig], bool]
    ) -> dict[bytes, ChannelConfig]:
        found: dict[bytes, ChannelConfig] = {}
        contract, since = self._place.contract, self._network.since
        async for part in events(endpoint, contract, since, last, self._network.logs, channels):
            found |= {
                each.channel: each.config for each in part if each.config is not None and self._opens(each, wanted)
            }
            if channels is not None and len(found) == len(channels):
                break
        return found

    def _opens(self, event: Event, wanted: Callable[[ChannelConfig], bool]) -> bool:
        """Whether it opens a channel that is wanted; an id that is not its config's is a lie."""
        config = event.config
        return config is not None and self._place.channel_id(config) == event.channel and wanted(config)
