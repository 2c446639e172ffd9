"""Vouchers are the same on every rail but for their place: which network they bind to, and which account there."""

from ledger.account import Account, apply
from ledger.changes import Authorized, VoucherReceived
from ledger.identity import Identity
from ledger.rails.port import TotalTooLow, WrongNetwork, WrongParties, WrongRail, WrongSigner, WrongUnit
from ledger.records import Signed, Voucher, sign


def make_voucher(
    rail: str,
    place: tuple[str, str],
    identity: Identity,
    account: Account,
    total: int,
    signature: bytes | None = None,
) -> Signed[Voucher]:
    """The payer's promise of a growing total; `place` is the network and the account there.

    `signature` is what the network itself takes for that promise, where it takes one.
    What it promised before may be signed again. Raises AuthorizedFell, AboveOwed (guards of `Authorized`), WrongSigner.
    """
    key = account.key
    if identity.did != key.payer:
        raise WrongSigner(key.payer, identity.did)
    if total != account.authorized:
        apply(account, Authorized(total))  # for its guards: what we sign, we must be able to write down
    return sign(Voucher(key.payer, key.payee, rail, *place, key.unit, total, signature), identity)


def check_voucher(
    rail: str, place: tuple[str, str], voucher: Signed[Voucher], account: Account, at_least: int
) -> VoucherReceived:
    """The fact that a voucher (its signature checked when it was opened) is to the payee's account.

    `at_least` is the total that it comes to pay. A voucher below what was promised before is refused, too.
    Raises WrongSigner, WrongParties, WrongRail, WrongNetwork, WrongUnit, TotalTooLow.
    """
    key, said = account.key, voucher.record
    if (said.payer, said.payee) != (key.payer, key.payee):
        raise WrongParties((key.payer, key.payee), (said.payer, said.payee))
    if voucher.signer != key.payer:
        raise WrongSigner(key.payer, voucher.signer)
    if (said.rail, key.rail) != (rail, rail):
        raise WrongRail(key.rail, said.rail)
    if (said.network, said.account) != place:
        raise WrongNetwork(place, (said.network, said.account))
    if said.unit != key.unit:
        raise WrongUnit(key.unit, said.unit)
    least = max(account.authorized, at_least)
    if said.total < least:
        raise TotalTooLow(least, said.total)
    return VoucherReceived(said.total)
