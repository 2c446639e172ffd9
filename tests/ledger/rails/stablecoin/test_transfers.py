"""Signed transfers, as x402's `exact` scheme signs them and as the token takes them."""

import pytest
from attrs import evolve
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.types import ExactEIP3009Authorization

from ledger.rails.stablecoin.networks import Token, network
from ledger.rails.stablecoin.transfers import Authorization
from tests.chain import CHAIN_ID, Anvil, RpcError

WALLET = Account.from_key(b"\x07" * 32)
OTHER = Account.from_key(b"\x08" * 32)
TOKEN = network("base").token
_address, _word = st.binary(min_size=20, max_size=20), st.binary(min_size=32, max_size=32)
_amount, _time = st.integers(1, 2**64), st.integers(0, 2**63)


def raw(address: str) -> bytes:
    return bytes.fromhex(address[2:])


@settings(max_examples=100, deadline=None)
@given(_address, _address, _amount, _time, _time, _word)
def test_what_is_signed_is_what_x402_signs(
    payer: bytes, receiver: bytes, value: int, after: int, before: int, nonce: bytes
) -> None:
    theirs = ExactEIP3009Authorization(
        "0x" + payer.hex(), "0x" + receiver.hex(), str(value), str(after), str(before), "0x" + nonce.hex()
    )
    expected = hash_eip3009_authorization(theirs, 8453, "0x" + TOKEN.address.hex(), TOKEN.name, TOKEN.version)
    assert Authorization(payer, receiver, value, after, before, nonce).digest(8453, TOKEN) == expected


def test_wallets_sign_the_whole_message() -> None:
    authorization = Authorization(raw(WALLET.address), raw(OTHER.address), 5, 0, 2**40, b"n" * 32)
    signature = bytes(WALLET.sign_typed_data(full_message=authorization.typed(8453, TOKEN)).signature)
    assert authorization.is_signed(8453, TOKEN, signature)
    assert not authorization.is_signed(1, TOKEN, signature)
    assert not evolve(authorization, value=6).is_signed(8453, TOKEN, signature)
    assert not evolve(authorization, payer=raw(OTHER.address)).is_signed(8453, TOKEN, signature)


def test_the_token_moves_it_once(chain: Anvil) -> None:
    payer, receiver = chain.wallet(100), chain.wallet()
    token = Token(raw(chain.deployed.dollar), "USD Coin", "2")
    authorization = Authorization(raw(payer.address), raw(receiver.address), 70, 0, 2**40, b"n" * 32)
    signature = bytes(payer.sign_typed_data(full_message=authorization.typed(CHAIN_ID, token)).signature)
    call = authorization.call(token, signature)
    parameters = {"from": receiver.address, "to": "0x" + call.to.hex(), "data": "0x" + call.data.hex()}
    chain.rpc("anvil_impersonateAccount", receiver.address)
    chain.rpc("eth_sendTransactionSync", parameters)
    assert (chain.dollars(payer.address), chain.dollars(receiver.address)) == (30, 70)
    with pytest.raises(RpcError):
        chain.rpc("eth_call", parameters, "latest")
