"""Why a contract refused, in words: custom errors by their names, as the interfaces in `contracts/src` have them."""

from typing import Final

from ledger.rails.stablecoin.contracts import Malformed, decoded
from ledger.rails.stablecoin.digests import keccak

# Channels, collectors, bonds; what tokens of OpenZeppelin say; x402's own channels, where their names differ.
_ERRORS: Final = """
AuthorizersDiffer(address,address) ClaimExceedsBalance(bytes32,uint128,uint128)
ClaimExceedsVoucher(bytes32,uint128,uint128) InvalidAuthorizerSignature(address) InvalidVoucherSignature(bytes32)
NoClaims() NoWithdrawPending(bytes32) NotAToken(address) NotPayer(address) NotReceiver(address)
WithdrawDelayOutOfRange(uint40) WithdrawExceedsUnclaimed(bytes32,uint128,uint128) WithdrawPending(bytes32)
WithdrawTooEarly(bytes32,uint256) WrongDeposit(uint256,uint256) WrongRefundNonce(uint256,uint256) ZeroAddress()
ZeroAmount() NotChannels(address) NotPayer(address,address) UnexpectedData()
Answered(bytes32) ArbitersNotAscending(address) ArbitersOutOfRange(uint256) ChallengeOutOfRange(uint40)
ChallengeRuns(uint40) EmptyAnswer() EmptyJudgement() EvidenceUsed(bytes32,bytes32) InvalidArbiterSignature(address)
JudgementExpired(uint40) NoQuorum(uint256,uint8) NoUnlockPending(bytes32) NotAnswered() NotProposed(bytes32,bytes32)
NotSeller(address) NothingFree(bytes32) NoticeOutOfRange(uint40) QuorumOutOfRange(uint8) SellerOnBothSides(address)
TooLate(uint40) UnlockExceedsStake(uint128,uint128) UnlockPending(bytes32) UnlockTooEarly(bytes32,uint40)
WrongArbiter(uint8) WrongStake(uint256,uint256)
ReentrancyGuardReentrantCall() SafeERC20FailedOperation(address)
ERC20InsufficientAllowance(address,uint256,uint256) ERC20InsufficientBalance(address,uint256,uint256)
ERC3009InvalidAuthorizationTime(uint256,uint256) ERC3009InvalidSignature() ERC3009UsedAuthorization(address,bytes32)
InvalidChannel() ZeroDeposit() DepositOverflow() InvalidSignature() NotReceiverAuthorizer() NotAuthorizedToClaim()
NotAuthorizedToRefund() ClaimExceedsCeiling() ClaimExceedsBalance() WithdrawalAlreadyPending() WithdrawalNotPending()
NotAuthorizedToFinalizeWithdraw() WithdrawDelayNotElapsed() NothingToWithdraw() WithdrawAmountExceedsAvailable()
WithdrawDelayOutOfRange() EmptyBatch() DepositCollectionFailed() InvalidCollector() InvalidRefundNonce() ZeroRefund()
"""
_NAMES: Final = {keccak(each.encode())[:4]: each.split("(")[0] for each in _ERRORS.split()}
_TEXT: Final = keccak(b"Error(string)")[:4]
_MAX_TEXT: Final = 120


def reason(data: bytes) -> str:
    """What a call's revert data says; empty if it is not known."""
    if data[:4] == _TEXT:
        try:
            text = str(decoded(["string"], data[4:])[0])
        except Malformed:
            return ""
        return "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_TEXT])
    return _NAMES.get(data[:4], "")
