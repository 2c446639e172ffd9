"""Channels between two nodes and their vouchers: what counts is what the chain would take, and nothing of another's."""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from pycddl import Schema

from ledger import codec
from ledger.account import AboveOwed, Account, AccountKey, apply
from ledger.changes import Earned, Funded, Granted, Reserved, VoucherReceived
from ledger.identity import Identity
from ledger.rails.port import TotalTooLow, VoucherRefused, WrongNetwork, WrongParties, WrongRail, WrongSigner, WrongUnit
from ledger.rails.stablecoin.books import MAX_DEPOSIT_BYTES, Deposit, decode_deposit
from ledger.rails.stablecoin.channels import (
    ChannelRefused,
    NotTheOwners,
    WrongPlace,
    WrongTerms,
    check_channel,
    check_terms,
    open_channel,
    salt_of,
)
from ledger.rails.stablecoin.digests import NOBODY, ChannelConfig, Place, config_of
from ledger.rails.stablecoin.vouchers import (
    AboveDeposit,
    NotTheAuthorizers,
    account_name,
    address_of,
    check_voucher,
    is_promised,
    make_voucher,
    signed,
    voucher_key,
)
from ledger.records import Channel, ChannelTerms, Signed, Voucher, open_record, sign

SELLER, BUYER, STRANGER = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
ROOT = Path(__file__).parents[4]
CDDL = (ROOT / "docs" / "records.cddl").read_text()
PLACE = Place(8453, b"\x11" * 20)
WALLET = b"\x55" * 20
TERMS = ChannelTerms(
    PLACE.network,
    PLACE.contract,
    b"\x22" * 20,
    b"\x33" * 20,
    b"\x44" * 20,
    86_400,
    100_000,
    1_800_000_000,
    1_800_003_600,
)
CHANNEL = open_channel(BUYER, SELLER.did, TERMS, PLACE, WALLET)
CONFIG = config_of(CHANNEL.record)
KEY = AccountKey(BUYER.did, SELLER.did, "stablecoin", "uusd")
COVERED = 1_000


def account(owed: int = 100) -> Account:
    order = b"o" * 32
    made = Account(KEY)
    for change in (Granted(0, 1_000, 1), Funded(COVERED, 1), Reserved(order, owed, 9), Earned(order, owed)):
        made = apply(made, change)
    return made


def voucher(total: int = 100) -> Signed[Voucher]:
    return make_voucher(PLACE, CONFIG, BUYER, account(), total)


def check(said: Signed[Voucher], at_least: int = 0, config: ChannelConfig = CONFIG) -> VoucherReceived:
    return check_voucher(PLACE, config, said, account(), at_least, COVERED)


def changed(**fields: Any) -> Signed[Voucher]:
    """The payer's own voucher, with other fields and a signature of the channel's key over its total all the same."""
    return sign(evolve(voucher().record, **fields), BUYER)


# Channels


def test_a_channel_is_one_by_the_payee_s_terms_and_proved_to_be_its_payer_s() -> None:
    check_terms(TERMS, PLACE, TERMS.token)
    assert check_channel(open_record(CHANNEL.raw, Channel), SELLER.did, TERMS, PLACE) == CONFIG
    assert CONFIG.salt == salt_of(BUYER.did, SELLER.did) != salt_of(SELLER.did, BUYER.did)
    assert CONFIG.payer_authorizer == address_of(voucher_key(BUYER).public_key)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"network": "eip155:84532"}, WrongPlace),
        ({"contract": b"\x12" * 20}, WrongPlace),
        ({"token": b"\x23" * 20}, WrongPlace),
        ({"receiver": WALLET}, WrongTerms),
        ({"receiver_authorizer": WALLET}, WrongTerms),
        ({"withdraw_delay": 86_399}, WrongTerms),
        ({"salt": bytes(32)}, WrongTerms),
        ({"payee": STRANGER.did}, WrongTerms),
        ({"payer_authorizer": NOBODY}, WrongTerms),
        ({"wallet": TERMS.receiver}, WrongTerms),
        ({"wallet": b"\x56" * 20}, NotTheOwners),  # another channel than the proof is for
        ({"payer": STRANGER.did}, NotTheOwners),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_channel_that_is_not_by_the_terms_is_refused(fields: dict[str, Any], error: type[ChannelRefused]) -> None:
    with pytest.raises(error):
        check_channel(sign(evolve(CHANNEL.record, **fields), BUYER), SELLER.did, TERMS, PLACE)


def test_another_s_channel_cannot_be_cited() -> None:
    """A stranger copies the buyer's channel with its own did; only the channel's key could prove it."""
    salt = salt_of(STRANGER.did, SELLER.did)
    stolen = sign(evolve(CHANNEL.record, payer=STRANGER.did, salt=salt), STRANGER)
    with pytest.raises(NotTheOwners, match=STRANGER.did):
        check_channel(stolen, SELLER.did, TERMS, PLACE)


def test_terms_of_another_place_or_to_nobody_are_refused() -> None:
    with pytest.raises(WrongPlace, match="network is eip155:8453, and this node's is eip155:137"):
        check_terms(TERMS, Place(137, PLACE.contract), TERMS.token)
    with pytest.raises(WrongPlace, match="token"):
        check_terms(TERMS, PLACE, WALLET)
    with pytest.raises(WrongTerms):
        check_terms(evolve(TERMS, receiver=NOBODY), PLACE, TERMS.token)


def test_terms_channel_and_voucher_of_the_vectors_fit_each_other() -> None:
    vectors = json.loads((ROOT / "tests" / "vectors" / "records.json").read_text())["records"]
    named = {vector["case"]: bytes.fromhex(vector["raw"]) for vector in vectors}
    terms = open_record(named["a seller's terms for channels"], ChannelTerms)
    channel = open_record(named["a buyer's channel"], Channel)
    paid = open_record(named["a voucher on a channel, which its contract takes as well"], Voucher).record
    place = Place(int(terms.record.network.removeprefix("eip155:")), terms.record.contract)
    config = check_channel(channel, terms.signer, terms.record, place)
    number = place.channel_id(config)
    assert (paid.network, paid.account) == (place.network, account_name(number))
    assert is_promised(place, config, number, paid.total, paid.signature or b"")


# Vouchers


def test_a_voucher_is_the_payer_s_and_the_contract_takes_it() -> None:
    said = open_record(voucher().raw, Voucher)
    assert check(said, at_least=100) == VoucherReceived(100)
    assert (said.record.network, said.record.account) == ("eip155:8453", account_name(PLACE.channel_id(CONFIG)))
    assert is_promised(PLACE, CONFIG, PLACE.channel_id(CONFIG), 100, said.record.signature or b"")


def test_a_payer_promises_no_more_than_it_owes_and_with_its_own_key() -> None:
    with pytest.raises(AboveOwed):
        voucher(101)
    with pytest.raises(NotTheAuthorizers):
        make_voucher(PLACE, evolve(CONFIG, payer_authorizer=WALLET), BUYER, account(), 100)
    theirs = evolve(CONFIG, payer_authorizer=address_of(voucher_key(STRANGER).public_key))
    with pytest.raises(WrongSigner):
        make_voucher(PLACE, theirs, STRANGER, account(), 100)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (changed(network="eip155:84532"), WrongNetwork),
        (changed(account=account_name(bytes(32))), WrongNetwork),
        (changed(rail="credit"), WrongRail),
        (changed(unit="msat"), WrongUnit),
        (changed(payee=STRANGER.did), WrongParties),
        (changed(total=99), TotalTooLow),
        (changed(total=101), NotTheAuthorizers),  # the signature is over another total
        (changed(total=COVERED + 1), AboveDeposit),
        (changed(signature=None), NotTheAuthorizers),
        (changed(signature=b"\1"), NotTheAuthorizers),
        (sign(voucher().record, STRANGER), WrongSigner),
    ],
    ids=["chain", "channel", "rail", "unit", "payee", "lower", "higher", "deposit", "none", "short", "signer"],
)
def test_a_voucher_that_does_not_pay_this_account_is_refused(
    said: Signed[Voucher], error: type[VoucherRefused]
) -> None:
    with pytest.raises(error):
        check(said, at_least=100)


@pytest.mark.parametrize(
    ("place", "config"),
    [
        (Place(84532, PLACE.contract), CONFIG),
        (Place(8453, b"\x12" * 20), CONFIG),
        (PLACE, evolve(CONFIG, salt=bytes(32))),
    ],
    ids=["chain", "contract", "channel"],
)
def test_a_signature_for_another_chain_contract_or_channel_is_worth_nothing(
    place: Place, config: ChannelConfig
) -> None:
    elsewhere = signed(voucher_key(BUYER), place.voucher(place.channel_id(config), 100))
    with pytest.raises(NotTheAuthorizers, match="each total"):
        check(changed(signature=elsewhere))


def test_a_signature_whose_v_is_the_other_one_is_the_contract_s_refusal_later_and_ours_now() -> None:
    good = voucher().record.signature or b""
    with pytest.raises(NotTheAuthorizers):
        check(changed(signature=good[:64] + bytes((27 + 28 - good[64],))))


def test_a_channel_whose_wallet_signs_vouchers_itself_counts_for_nothing() -> None:
    own = evolve(CONFIG, payer_authorizer=NOBODY)
    assert not is_promised(PLACE, own, PLACE.channel_id(own), 1, voucher(1).record.signature or b"")


# Deposits on their way


DEPOSIT = Deposit(b"c" * 32, 5_000_000, 0, 1_800_000_000, b"s" * 32, b"g" * 65)


def test_a_deposit_travels() -> None:
    assert decode_deposit(DEPOSIT.encode()) == DEPOSIT
    Schema(f"start = deposit\n{CDDL}").validate_cbor(DEPOSIT.encode())
    assert len(evolve(DEPOSIT, amount=2**53 - 1, valid_before=2**40).encode()) <= MAX_DEPOSIT_BYTES


@pytest.mark.parametrize(
    "fields",
    [
        {"channel": b"c" * 31},
        {"amount": 0},
        {"amount": 2**53},
        {"amount": True},
        {"valid_after": 1_800_000_000},
        {"valid_before": 2**41},
        {"salt": b""},
        {"signature": b"g" * 200},
    ],
    ids=str,
)
def test_what_is_no_deposit_is_malformed(fields: dict[str, Any]) -> None:
    with pytest.raises(codec.Malformed):
        decode_deposit(evolve(DEPOSIT, **fields).encode())
