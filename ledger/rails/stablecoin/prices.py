"""What is offered for gas, whatever an endpoint says that it costs.

Theory of operation. Of what is offered the tip is paid whatever the block's base fee is, and a sole endpoint says how
much it is. So what gas costs is remembered, at most once a minute, and a price many times the middle of those is not
believed at once. A transaction then offers so many times the middle and no more, and waits: it is replaced by one that
offers 12.5% more, as any that is in no block, so that it goes out also when the price was true.
No offer is above the bound, which is the network's unless the owner has another.
"""

import contextlib
import json
import logging
import time
from collections import deque
from pathlib import Path
from typing import Final

from attrs import evolve

from ledger.rails.stablecoin.errors import TooDear
from ledger.rails.stablecoin.fees import GasPrice, gas_price, middle
from ledger.rails.stablecoin.networks import Network
from ledger.rails.stablecoin.outbox import write_whole
from ledger.rails.stablecoin.rpc import Endpoints

# So many prices are remembered, each of another minute; with fewer than the least nothing follows from them.
_REMEMBERED: Final = 100
_LEAST: Final = 5
_EVERY_S: Final = 60.0
# Base fees of all networks here doubled within minutes before; ten times as much in between two looks did not happen.
_TIMES: Final = 10

_log = logging.getLogger(__name__)


class Prices:
    """Of one network, in wei for one gas."""

    def __init__(
        self, endpoints: Endpoints, network: Network, most: int, path: Path, every_s: float = _EVERY_S
    ) -> None:
        """`most` is the bound; `path` keeps what gas has cost, as remembered `every_s`, from one run to the next."""
        self._endpoints = endpoints
        self._network = network
        self.most: Final = most
        self._path = path
        self._every_s = every_s
        self._seen: deque[int] = deque(_load(path), _REMEMBERED)
        self._seen_at: float | None = None

    async def said(self) -> GasPrice:
        """What endpoints say. Raises Unreachable."""
        price = await gas_price(self._endpoints, self._network)
        now = time.monotonic()
        if self._seen_at is None or now - self._seen_at >= self._every_s:
            self._seen_at = now
            self._seen.append(price.expected)
            with contextlib.suppress(OSError):  # it is only remembered less long
                write_whole(self._path, {"seen": list(self._seen)})
        return price

    async def offer(self) -> GasPrice:
        """What a transaction offers to begin with. Raises TooDear, Unreachable."""
        price = self._believed(await self.said())
        if price.expected > self.most:
            raise TooDear(price.expected, self.most)
        return evolve(price, most=min(price.most, self.most))

    async def offer_again(self, most: int, tip: int) -> tuple[int, int]:
        """What one that stands at these offers that has been replaced. Raises Unreachable."""
        price = self._believed(await self.said())
        most = min(max(most, price.most), self.most)
        return most, min(max(tip, price.tip), most)

    def _believed(self, price: GasPrice) -> GasPrice:
        if len(self._seen) < _LEAST:
            return price
        bound = _TIMES * middle(list(self._seen))
        if price.expected <= bound:
            return price
        said, usual = price.expected / 10**9, bound / _TIMES / 10**9
        _log.warning(
            "gas is said to cost %g gwei, and lately it did %g: a transaction offers %d times that, and waits until it"
            " is enough, or is raised",
            said,
            usual,
            _TIMES,
        )
        return evolve(price, expected=bound, most=bound, tip=min(price.tip, bound))


def _load(path: Path) -> list[int]:
    """What an earlier run has seen; nothing, if that cannot be read."""
    try:
        kept = json.loads(path.read_bytes())["seen"]
        return [each for each in kept if isinstance(each, int) and each >= 0]
    except (OSError, ValueError, KeyError, TypeError):
        return []
