"""What tests of the chain share: two parties of a channel, each with its own view of it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.keys import Signer
from ledger.rails.stablecoin.networks import network
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import Pair, raw

NEVER_S = 3600.0


class Opens(Protocol):
    async def __call__(
        self,
        signer: Signer | None = None,
        *,
        rpc: tuple[str, ...] = (),
        folder: str | None = None,
        stuck_s: float = NEVER_S,
        poll_s: float = NEVER_S,
        max_gas_price: int | None = None,
        answer_s: float = 5.0,
    ) -> Chain: ...


@pytest.fixture
async def opens(chain: Anvil, tmp_path: Path) -> AsyncIterator[Opens]:
    """Opens views of the chain on our contract; by default nothing is tended unless a test says so."""
    async with AsyncExitStack() as stack:
        number = 0

        async def opened(
            signer: Signer | None = None,
            *,
            rpc: tuple[str, ...] = (),
            folder: str | None = None,
            stuck_s: float = NEVER_S,
            poll_s: float = NEVER_S,
            max_gas_price: int | None = None,
            answer_s: float = 5.0,
        ) -> Chain:
            nonlocal number
            number += 1
            made = await Chain.open(
                network("anvil"),
                rpc or (chain.url,),
                tmp_path / (folder or str(number)),
                signer,
                contract=raw(chain.deployed.channels),
                stuck_s=stuck_s,
                poll_s=poll_s,
                max_gas_price=max_gas_price,
                answer_s=answer_s,
            )
            stack.push_async_callback(made.close)
            return made

        yield opened


@pytest.fixture
def pair(chain: Anvil) -> Pair:
    return Pair(chain)
