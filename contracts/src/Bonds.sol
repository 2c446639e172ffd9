// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {IBonds} from "./IBonds.sol";

/// @title Bonds
/// @notice What each function does stands in {IBonds}.
/// @dev Without owner, upgrade or fee. Slashed money is fetched, not sent: no recipient can hold up a slash.
contract Bonds is IBonds, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    uint40 public constant MIN_NOTICE = 1 days;
    uint40 public constant MAX_PERIOD = 90 days;
    uint256 public constant MAX_ARBITERS = 16;

    /// @notice Where burned tokens go. Most tokens refuse transfers to the zero address.
    address public constant BURNED = 0x000000000000000000000000000000000000dEaD;

    bytes32 private constant TERMS_TYPEHASH = keccak256(
        "BondTerms(address seller,address token,address sink,uint40 noticePeriod,uint40 challengePeriod,uint8 quorum,"
        "address[] arbiters,bytes32 salt)"
    );
    bytes32 private constant SLASH_TYPEHASH =
        keccak256("Slash(bytes32 bondId,bytes32 evidence,address buyer,uint128 damage,uint128 amount,uint40 deadline)");
    bytes32 private constant UPHOLD_TYPEHASH = keccak256("Uphold(bytes32 bondId,bytes32 evidence,bytes32 answer)");
    bytes32 private constant DISMISS_TYPEHASH = keccak256("Dismiss(bytes32 bondId,bytes32 evidence)");

    struct Bond {
        uint128 stake;
        uint128 reserved;
        uint128 unlocking;
        uint40 unlocksAt;
    }

    struct Slash {
        Status status;
        uint40 challengeEnds;
        address buyer;
        uint128 amount;
        uint128 damage;
        bytes32 answer;
    }

    /// @inheritdoc IBonds
    mapping(bytes32 bondId => Bond) public bonds;

    /// @inheritdoc IBonds
    // slither-disable-next-line uninitialized-state
    mapping(bytes32 bondId => mapping(bytes32 evidence => Slash)) public slashes;

    /// @inheritdoc IBonds
    mapping(address account => mapping(address token => uint256)) public credits;

    modifier onlySeller(Terms calldata terms) {
        if (msg.sender != terms.seller) revert NotSeller(msg.sender);
        _;
    }

    constructor() EIP712("idlemesh Bonds", "1") {}

    /// @inheritdoc IBonds
    function bond(Terms calldata terms, uint128 amount) external nonReentrant onlySeller(terms) {
        _check(terms);
        if (amount == 0) revert ZeroAmount();
        bytes32 bondId = getBondId(terms);
        uint128 stake = bonds[bondId].stake + amount;
        bonds[bondId].stake = stake;
        emit Bonded(bondId, msg.sender, amount, stake, terms);

        IERC20 token = IERC20(terms.token);
        uint256 held = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 holds = token.balanceOf(address(this));
        if (holds < held || holds - held != amount) revert WrongStake(amount, holds < held ? 0 : holds - held);
    }

    /// @inheritdoc IBonds
    function requestUnlock(Terms calldata terms, uint128 amount) external onlySeller(terms) {
        if (amount == 0) revert ZeroAmount();
        bytes32 bondId = getBondId(terms);
        Bond storage bond_ = bonds[bondId];
        if (bond_.unlocking != 0) revert UnlockPending(bondId);
        if (amount > bond_.stake) revert UnlockExceedsStake(amount, bond_.stake);
        uint40 unlocksAt = uint40(block.timestamp) + terms.noticePeriod;
        bond_.unlocking = amount;
        bond_.unlocksAt = unlocksAt;
        emit UnlockRequested(bondId, amount, unlocksAt);
    }

    /// @inheritdoc IBonds
    function cancelUnlock(Terms calldata terms) external onlySeller(terms) {
        bytes32 bondId = getBondId(terms);
        uint128 amount = bonds[bondId].unlocking;
        if (amount == 0) revert NoUnlockPending(bondId);
        _setUnlocking(bondId, 0);
        emit UnlockCancelled(bondId, amount);
    }

    /// @inheritdoc IBonds
    function unlock(Terms calldata terms) external nonReentrant onlySeller(terms) {
        bytes32 bondId = getBondId(terms);
        Bond memory bond_ = bonds[bondId];
        if (bond_.unlocking == 0) revert NoUnlockPending(bondId);
        if (block.timestamp < bond_.unlocksAt) revert UnlockTooEarly(bondId, bond_.unlocksAt);
        uint128 amount = _min(bond_.unlocking, bond_.stake - bond_.reserved);
        if (amount == 0) revert NothingFree(bondId);
        bonds[bondId].stake = bond_.stake - amount;
        _setUnlocking(bondId, bond_.unlocking - amount);
        emit Unlocked(bondId, amount);
        IERC20(terms.token).safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc IBonds
    function proposeSlash(Terms calldata terms, Judgement calldata judgement, ArbiterSignature[] calldata signatures)
        external
    {
        if (judgement.evidence == 0 || judgement.buyer == address(0) || judgement.damage == 0) revert EmptyJudgement();
        if (judgement.amount == 0) revert ZeroAmount();
        if (judgement.buyer == terms.seller) revert SellerOnBothSides(terms.seller);
        if (block.timestamp > judgement.deadline) revert JudgementExpired(judgement.deadline);
        bytes32 bondId = getBondId(terms);
        Slash storage slash = slashes[bondId][judgement.evidence];
        if (slash.status != Status.None) revert EvidenceUsed(bondId, judgement.evidence);
        _checkQuorum(terms, getSlashDigest(bondId, judgement), signatures);

        Bond storage bond_ = bonds[bondId];
        uint128 amount = _min(judgement.amount, bond_.stake - bond_.reserved);
        if (amount == 0) revert NothingFree(bondId);
        bond_.reserved += amount;
        uint40 challengeEnds = uint40(block.timestamp) + terms.challengePeriod;
        slash.status = Status.Proposed;
        slash.challengeEnds = challengeEnds;
        slash.buyer = judgement.buyer;
        slash.amount = amount;
        slash.damage = judgement.damage;
        emit SlashProposed(bondId, judgement.evidence, judgement.buyer, amount, judgement.damage, challengeEnds);
    }

    /// @inheritdoc IBonds
    function answerSlash(Terms calldata terms, bytes32 evidence, bytes32 answer) external onlySeller(terms) {
        if (answer == 0) revert EmptyAnswer();
        (bytes32 bondId, Slash storage slash) = _proposed(terms, evidence);
        if (block.timestamp >= slash.challengeEnds) revert TooLate(slash.challengeEnds);
        slash.answer = answer;
        emit SlashAnswered(bondId, evidence, answer);
    }

    /// @inheritdoc IBonds
    function executeSlash(Terms calldata terms, bytes32 evidence) external {
        (bytes32 bondId, Slash storage slash) = _proposed(terms, evidence);
        if (slash.answer != 0) revert Answered(slash.answer);
        if (block.timestamp < slash.challengeEnds) revert ChallengeRuns(slash.challengeEnds);
        _execute(terms, bondId, evidence, slash);
    }

    /// @inheritdoc IBonds
    function upholdSlash(Terms calldata terms, bytes32 evidence, ArbiterSignature[] calldata signatures) external {
        (bytes32 bondId, Slash storage slash) = _proposed(terms, evidence);
        if (slash.answer == 0) revert NotAnswered();
        if (block.timestamp < slash.challengeEnds) revert ChallengeRuns(slash.challengeEnds);
        uint40 end = slash.challengeEnds + terms.challengePeriod;
        if (block.timestamp >= end) revert TooLate(end);
        _checkQuorum(terms, getUpholdDigest(bondId, evidence, slash.answer), signatures);
        _execute(terms, bondId, evidence, slash);
    }

    /// @inheritdoc IBonds
    function dismissSlash(Terms calldata terms, bytes32 evidence, ArbiterSignature[] calldata signatures) external {
        (bytes32 bondId, Slash storage slash) = _proposed(terms, evidence);
        _checkQuorum(terms, getDismissDigest(bondId, evidence), signatures);
        slash.status = Status.Dismissed;
        bonds[bondId].reserved -= slash.amount;
        emit SlashDismissed(bondId, evidence);
    }

    /// @inheritdoc IBonds
    function lapseSlash(Terms calldata terms, bytes32 evidence) external {
        (bytes32 bondId, Slash storage slash) = _proposed(terms, evidence);
        if (slash.answer == 0) revert NotAnswered();
        uint40 end = slash.challengeEnds + terms.challengePeriod;
        if (block.timestamp < end) revert ChallengeRuns(end);
        slash.status = Status.Lapsed;
        bonds[bondId].reserved -= slash.amount;
        emit SlashLapsed(bondId, evidence);
    }

    /// @inheritdoc IBonds
    function payOut(address account, address token) external nonReentrant {
        uint256 amount = credits[account][token];
        if (amount == 0) revert ZeroAmount();
        credits[account][token] = 0;
        emit PaidOut(account, token, amount);
        IERC20(token).safeTransfer(account, amount);
    }

    /// @inheritdoc IBonds
    function getBondId(Terms calldata terms) public view returns (bytes32) {
        return _hashTypedDataV4(
            keccak256(
                abi.encode(
                    TERMS_TYPEHASH,
                    terms.seller,
                    terms.token,
                    terms.sink,
                    terms.noticePeriod,
                    terms.challengePeriod,
                    terms.quorum,
                    keccak256(abi.encodePacked(terms.arbiters)),
                    terms.salt
                )
            )
        );
    }

    /// @inheritdoc IBonds
    function getSlashDigest(bytes32 bondId, Judgement calldata judgement) public view returns (bytes32) {
        return _hashTypedDataV4(
            keccak256(
                abi.encode(
                    SLASH_TYPEHASH,
                    bondId,
                    judgement.evidence,
                    judgement.buyer,
                    judgement.damage,
                    judgement.amount,
                    judgement.deadline
                )
            )
        );
    }

    /// @inheritdoc IBonds
    function getUpholdDigest(bytes32 bondId, bytes32 evidence, bytes32 answer) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(UPHOLD_TYPEHASH, bondId, evidence, answer)));
    }

    /// @inheritdoc IBonds
    function getDismissDigest(bytes32 bondId, bytes32 evidence) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(DISMISS_TYPEHASH, bondId, evidence)));
    }

    function _execute(Terms calldata terms, bytes32 bondId, bytes32 evidence, Slash storage slash) private {
        uint128 amount = slash.amount;
        slash.status = Status.Executed;
        Bond storage bond_ = bonds[bondId];
        uint128 stake = bond_.stake - amount;
        bond_.stake = stake;
        bond_.reserved -= amount;
        if (bond_.unlocking > stake) _setUnlocking(bondId, stake);
        uint128 toBuyer = _min(amount, slash.damage);
        uint128 toSink = amount - toBuyer;
        credits[slash.buyer][terms.token] += toBuyer;
        if (toSink != 0) credits[terms.sink == address(0) ? BURNED : terms.sink][terms.token] += toSink;
        emit Slashed(bondId, evidence, toBuyer, toSink);
    }

    function _setUnlocking(bytes32 bondId, uint128 amount) private {
        bonds[bondId].unlocking = amount;
        if (amount == 0) bonds[bondId].unlocksAt = 0;
    }

    function _proposed(Terms calldata terms, bytes32 evidence)
        private
        view
        returns (bytes32 bondId, Slash storage slash)
    {
        bondId = getBondId(terms);
        slash = slashes[bondId][evidence];
        if (slash.status != Status.Proposed) revert NotProposed(bondId, evidence);
    }

    function _checkQuorum(Terms calldata terms, bytes32 digest, ArbiterSignature[] calldata signatures) private view {
        if (signatures.length < terms.quorum || signatures.length > terms.arbiters.length) {
            revert NoQuorum(signatures.length, terms.quorum);
        }
        uint256 next = 0; // ascending, so nobody signs twice
        for (uint256 i; i < signatures.length; ++i) {
            uint8 place = signatures[i].arbiter;
            if (place < next || place >= terms.arbiters.length) revert WrongArbiter(place);
            next = uint256(place) + 1;
            address arbiter = terms.arbiters[place];
            if (!SignatureChecker.isValidSignatureNowCalldata(arbiter, digest, signatures[i].signature)) {
                revert InvalidArbiterSignature(arbiter);
            }
        }
    }

    function _check(Terms calldata terms) private view {
        if (terms.seller == address(0)) revert ZeroAddress();
        if (terms.token.code.length == 0) revert NotAToken(terms.token);
        if (terms.sink == terms.seller) revert SellerOnBothSides(terms.seller);
        if (terms.noticePeriod < MIN_NOTICE || terms.noticePeriod > MAX_PERIOD) {
            revert NoticeOutOfRange(terms.noticePeriod);
        }
        if (terms.challengePeriod < terms.noticePeriod || terms.challengePeriod > MAX_PERIOD) {
            revert ChallengeOutOfRange(terms.challengePeriod);
        }
        uint256 count = terms.arbiters.length;
        if (count == 0 || count > MAX_ARBITERS) revert ArbitersOutOfRange(count);
        if (terms.quorum > count || uint256(terms.quorum) * 2 <= count) revert QuorumOutOfRange(terms.quorum);
        address last = address(0);
        for (uint256 i; i < count; ++i) {
            address arbiter = terms.arbiters[i];
            if (arbiter <= last) revert ArbitersNotAscending(arbiter);
            if (arbiter == terms.seller) revert SellerOnBothSides(arbiter);
            last = arbiter;
        }
    }

    function _min(uint128 a, uint128 b) private pure returns (uint128) {
        return a < b ? a : b;
    }
}
