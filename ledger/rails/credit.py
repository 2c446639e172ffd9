"""The rail of trust: the payee grants a limit, the payer signs what it owes, and they settle as they please.

There is no network and no account on it, so a voucher names neither. This module is a `port.Rail`.
"""

from typing import Final

from ledger.account import Account, apply
from ledger.changes import Authorized, VoucherReceived
from ledger.identity import Identity
from ledger.rails.port import TotalTooLow, WrongNetwork, WrongParties, WrongRail, WrongSigner, WrongUnit
from ledger.records import Signed, Voucher, sign

name: Final = "credit"
_NOWHERE: Final = ("", "")


def capacity(account: Account) -> int:
    """The limit that the payee granted, and what has been settled."""
    return account.capacity


def make_voucher(identity: Identity, account: Account, total: int) -> Signed[Voucher]:
    """The payer's promise of a growing total; one that it has given may be signed again.

    Raises AuthorizedFell, AboveOwed (the guards of `Authorized`), WrongSigner.
    """
    key = account.key
    if identity.did != key.payer:
        raise WrongSigner(key.payer, identity.did)
    if total != account.authorized:
        apply(account, Authorized(total))  # for its guards: what we sign, we must be able to write down
    network, channel = _NOWHERE
    return sign(Voucher(key.payer, key.payee, name, network, channel, key.unit, total), identity)


def check_voucher(voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
    """The fact that a voucher (its signature checked when it was opened) is to the payee's account.

    `at_least` is the total that it comes to pay. A voucher below what was promised before is refused, too.
    Raises WrongSigner, WrongParties, WrongRail, WrongNetwork, WrongUnit, TotalTooLow.
    """
    key, said = account.key, voucher.record
    if (said.payer, said.payee) != (key.payer, key.payee):
        raise WrongParties((key.payer, key.payee), (said.payer, said.payee))
    if voucher.signer != key.payer:
        raise WrongSigner(key.payer, voucher.signer)
    if (said.rail, key.rail) != (name, name):
        raise WrongRail(key.rail, said.rail)
    if (said.network, said.account) != _NOWHERE:
        raise WrongNetwork(_NOWHERE, (said.network, said.account))
    if said.unit != key.unit:
        raise WrongUnit(key.unit, said.unit)
    least = max(account.authorized, at_least)
    if said.total < least:
        raise TotalTooLow(least, said.total)
    return VoucherReceived(said.total)
