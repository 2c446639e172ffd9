"""Channels found again on the chain, from keys alone.

Theory of operation. What a journal has is not asked for here: with it, a channel's totals and withdrawals are read like
any day. Without it, a channel is found by the wallet that pays or is paid by it, and told apart by its salt, which
follows from the two dids. Its payer knows its own by its voucher key as well, and can say anew that it is its own; a
payee cannot know whose a channel is until the payer says so again, for anyone may open one with any salt.
"""

from collections.abc import Iterable

from attrs import frozen

from ledger.identity import Identity
from ledger.rails.stablecoin.chain import Chain, ChannelView
from ledger.rails.stablecoin.channels import channel_of, salt_of
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.rails.stablecoin.errors import ChannelUnknown
from ledger.rails.stablecoin.finding import Found
from ledger.rails.stablecoin.vouchers import address_of, voucher_key
from ledger.records import Channel, Signed, sign


@frozen
class FoundAgain:
    """A channel of this node's and a peer's. `channel` is its record, signed anew by its payer; None at the payee.

    `view` is what it holds, promised and lost by now; None: it was emptied, and can be paid into again.
    """

    payer: str
    payee: str
    config: ChannelConfig
    channel: Signed[Channel] | None
    view: ChannelView | None


async def find_again(chain: Chain, identity: Identity, peers: Iterable[str]) -> list[FoundAgain]:
    """All channels between this node, whose wallet the chain has, and these dids; several with one, if terms changed.

    Slow: it reads all that ever happened to the contract. Raises ChainError.
    """
    me, key = identity.did, address_of(voucher_key(identity).public_key)
    parties = {salt_of(*pair): pair for peer in peers for pair in ((me, peer), (peer, me))}
    found = []
    for each in await chain.find_all(chain.address):
        config = each.config
        payer, payee = parties.get(config.salt, ("", ""))
        if payer == me and (config.payer, config.payer_authorizer) == (chain.address, key):
            channel = sign(channel_of(identity, payee, chain.place, config), identity)
            found.append(FoundAgain(payer, payee, config, channel, await _seen(chain, each)))
        elif payee == me and config.receiver == chain.address:
            found.append(FoundAgain(payer, payee, config, None, await _seen(chain, each)))
    return found


async def _seen(chain: Chain, found: Found) -> ChannelView | None:
    try:
        return await chain.look(found.config, found.opened)
    except ChannelUnknown:
        return None
