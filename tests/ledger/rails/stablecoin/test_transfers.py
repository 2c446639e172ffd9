"""Transfers by signature: what the chain has of them, whatever their payer did besides."""

from eth_account.signers.local import LocalAccount
from eth_typing import Hash32

from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.transfers import Authorization, happened
from tests.chain import MULTICALL, Anvil
from tests.ledger.rails.stablecoin.channels import Pair
from tests.ledger.rails.stablecoin.conftest import Opens

VALUE = 2_000


def _call(chain: Chain, wallet: LocalAccount, to: bytes, value: int, nonce: int) -> tuple[str, bytes]:
    """A transfer that its payer signed, as a call that anyone may make."""
    token = chain.network.token
    payer = bytes.fromhex(wallet.address[2:])
    said = Authorization(payer, to, value, 0, 2**40, nonce.to_bytes(32, "big"))
    signature = bytes(wallet.unsafe_sign_hash(Hash32(said.digest(chain.network.chain_id, token))).signature)
    call = said.call(token, signature)
    return "0x" + call.to.hex(), call.data


async def test_one_movement_of_money_is_no_two_transfers(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, node = chain.wallet(dollars=VALUE + 1), await opens(pair.receiver)
    me = bytes.fromhex(payer.address[2:])
    # In one transaction three nonces are used up by transfers to their payer, and one pays this node.
    calls = [_call(node, payer, me, 1, nonce) for nonce in (1, 2, 3)]
    calls.insert(2, _call(node, payer, node.address, VALUE, 4))
    chain.send(MULTICALL, "tryAggregate(bool,(address,bytes)[])", True, calls)
    came = [await happened(node, (me, nonce.to_bytes(32, "big")), VALUE, chain.time - 60) for nonce in (1, 2, 3, 4)]
    assert chain.dollars("0x" + node.address.hex()) == VALUE
    assert came == [False, False, False, True]
