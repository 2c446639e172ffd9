// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Bonds that sellers lock and that arbiters can slash
/// @notice A seller locks a stake under terms of its own choice: who may judge it, how many of them it takes, and how
/// long its notice is. Buyers count a bond only as far as they trust the arbiters that it names. A slash waits for a
/// challenge period, in which the seller may answer; an answered one needs the arbiters' word a second time.
/// @dev A slash is paid no sooner after its proposal than a stake after its notice, and seller, buyer, sink and
/// arbiters are different addresses: a seller that has itself slashed gains no time. A stake under notice can still be
/// slashed; a stake that a proposal reserves cannot leave.
interface IBonds {
    /// @notice What a bond is. Its EIP-712 digest is the bond's id, so nothing of it ever changes.
    /// @param seller Whose stake it is.
    /// @param token The ERC-20 token of the stake.
    /// @param sink Who gets of a slash what exceeds the damage; zero: it is burned.
    /// @param noticePeriod Seconds between asking for the stake and getting it: 1 to 90 days.
    /// @param challengePeriod Seconds in which a slash may be answered: the notice at least, 90 days at most.
    /// @param quorum How many arbiters have to agree: more than half.
    /// @param arbiters Who may judge, in ascending order, at most 16.
    /// @param salt Tells bonds apart that are otherwise the same.
    struct Terms {
        address seller;
        address token;
        address sink;
        uint40 noticePeriod;
        uint40 challengePeriod;
        uint8 quorum;
        address[] arbiters;
        bytes32 salt;
    }

    /// @notice What the arbiters sign to have a bond slashed.
    /// @param evidence The digest of what shows the harm. It counts once for each bond.
    /// @param buyer Who was harmed.
    /// @param damage What the buyer lost: it gets that much of the slash, the sink the rest.
    /// @param amount How much of the stake is taken, if it has that much.
    /// @param deadline Until when the slash may be proposed, in seconds since 1970.
    struct Judgement {
        bytes32 evidence;
        address buyer;
        uint128 damage;
        uint128 amount;
        uint40 deadline;
    }

    /// @notice One arbiter's signature.
    /// @param arbiter Its place in the terms' list.
    /// @param signature By its key, or by ERC-1271.
    struct ArbiterSignature {
        uint8 arbiter;
        bytes signature;
    }

    enum Status {
        None,
        Proposed,
        Executed,
        Dismissed,
        Lapsed
    }

    /// @notice A stake was locked or raised; the first one tells the terms.
    event Bonded(bytes32 indexed bondId, address indexed seller, uint128 amount, uint128 stake, Terms terms);

    /// @notice The seller wants a part of its stake back.
    event UnlockRequested(bytes32 indexed bondId, uint128 amount, uint40 unlocksAt);

    /// @notice The seller lets its stake stay.
    event UnlockCancelled(bytes32 indexed bondId, uint128 amount);

    /// @notice The notice is over and the seller took its stake, or the part that no proposal reserves.
    event Unlocked(bytes32 indexed bondId, uint128 amount);

    /// @notice Arbiters want a bond slashed; `amount` is reserved for it.
    event SlashProposed(
        bytes32 indexed bondId,
        bytes32 indexed evidence,
        address indexed buyer,
        uint128 amount,
        uint128 damage,
        uint40 challengeEnds
    );

    /// @notice The seller answered; the digest is of its answer.
    event SlashAnswered(bytes32 indexed bondId, bytes32 indexed evidence, bytes32 answer);

    /// @notice A slash was carried out; both can fetch their part.
    event Slashed(bytes32 indexed bondId, bytes32 indexed evidence, uint128 toBuyer, uint128 toSink);

    /// @notice The arbiters took a slash back.
    event SlashDismissed(bytes32 indexed bondId, bytes32 indexed evidence);

    /// @notice The arbiters did not uphold a slash that was answered.
    event SlashLapsed(bytes32 indexed bondId, bytes32 indexed evidence);

    /// @notice Somebody got what slashes left for it.
    event PaidOut(address indexed account, address indexed token, uint256 amount);

    /// @notice There is no contract at the token's address.
    error NotAToken(address token);

    /// @notice The seller is the zero address.
    error ZeroAddress();

    /// @notice The seller is also buyer, sink or arbiter.
    error SellerOnBothSides(address seller);

    /// @notice The notice is not within 1 and 90 days.
    error NoticeOutOfRange(uint40 noticePeriod);

    /// @notice The challenge period is shorter than the notice or longer than 90 days.
    error ChallengeOutOfRange(uint40 challengePeriod);

    /// @notice No arbiters, or more than 16.
    error ArbitersOutOfRange(uint256 arbiters);

    /// @notice The arbiters are not in ascending order without repetition.
    error ArbitersNotAscending(address arbiter);

    /// @notice The quorum is not more than half of the arbiters, or more than all.
    error QuorumOutOfRange(uint8 quorum);

    /// @notice An amount of nothing.
    error ZeroAmount();

    /// @notice Another amount arrived than was sent; tokens that charge for transfers do so.
    error WrongStake(uint256 expected, uint256 received);

    /// @notice Only the seller may do this.
    error NotSeller(address sender);

    /// @notice More was asked for than is locked.
    error UnlockExceedsStake(uint128 amount, uint128 stake);

    /// @notice The seller asked for a part already; it takes it or cancels first.
    error UnlockPending(bytes32 bondId);

    /// @notice The seller asked for nothing.
    error NoUnlockPending(bytes32 bondId);

    /// @notice The notice is not over.
    error UnlockTooEarly(bytes32 bondId, uint40 unlocksAt);

    /// @notice Nothing is there to be taken: no stake, or all of it reserved.
    error NothingFree(bytes32 bondId);

    /// @notice Less than a quorum signed, or more signatures came than there are arbiters.
    error NoQuorum(uint256 signatures, uint8 quorum);

    /// @notice The signatures are not in ascending order of arbiters without repetition, or name one that is none.
    error WrongArbiter(uint8 arbiter);

    /// @notice The signature is not the arbiter's over this statement.
    error InvalidArbiterSignature(address arbiter);

    /// @notice The evidence was used for this bond.
    error EvidenceUsed(bytes32 bondId, bytes32 evidence);

    /// @notice The judgement's deadline is over.
    error JudgementExpired(uint40 deadline);

    /// @notice A judgement without damage, buyer or evidence.
    error EmptyJudgement();

    /// @notice There is no such slash, or it is decided.
    error NotProposed(bytes32 bondId, bytes32 evidence);

    /// @notice The challenge period is not over.
    error ChallengeRuns(uint40 challengeEnds);

    /// @notice The time for it is over.
    error TooLate(uint40 end);

    /// @notice The seller answered: the arbiters have to uphold the slash.
    error Answered(bytes32 answer);

    /// @notice The seller did not answer: there is nothing to uphold.
    error NotAnswered();

    /// @notice An answer of zero.
    error EmptyAnswer();

    /// @notice Locks a stake, or raises it, by the seller, out of what it approved to this contract. Exactly `amount`
    /// has to arrive. Whoever bonds accepts the arbiters that the terms name.
    function bond(Terms calldata terms, uint128 amount) external;

    /// @notice Begins the notice for a part of the stake. By the seller.
    function requestUnlock(Terms calldata terms, uint128 amount) external;

    /// @notice Takes the notice back. By the seller.
    function cancelUnlock(Terms calldata terms) external;

    /// @notice Pays the seller what it asked for once its notice is over; what a slash reserves stays until decided.
    function unlock(Terms calldata terms) external;

    /// @notice Proposes a slash with the signatures of a quorum; anyone may bring them. It reserves the judgement's
    /// amount, or what the stake has if that is less.
    function proposeSlash(Terms calldata terms, Judgement calldata judgement, ArbiterSignature[] calldata signatures)
        external;

    /// @notice The seller answers a proposal within the challenge period. The last answer counts.
    /// @param answer The digest of what it says, which it gives to the arbiters.
    function answerSlash(Terms calldata terms, bytes32 evidence, bytes32 answer) external;

    /// @notice Carries out a slash that was not answered in its challenge period; anyone may.
    function executeSlash(Terms calldata terms, bytes32 evidence) external;

    /// @notice Carries out a slash that was answered, with the signatures of a quorum over the answer, within one more
    /// challenge period; anyone may bring them.
    function upholdSlash(Terms calldata terms, bytes32 evidence, ArbiterSignature[] calldata signatures) external;

    /// @notice Drops a proposal with the signatures of a quorum; anyone may bring them. The evidence stays used.
    function dismissSlash(Terms calldata terms, bytes32 evidence, ArbiterSignature[] calldata signatures) external;

    /// @notice Drops a proposal that was answered and not upheld in time; anyone may. The evidence stays used.
    function lapseSlash(Terms calldata terms, bytes32 evidence) external;

    /// @notice Pays out what slashes left for an account; anyone may.
    function payOut(address account, address token) external;

    /// @notice The bond's id: the EIP-712 digest of its terms, bound to this chain and contract.
    function getBondId(Terms calldata terms) external view returns (bytes32);

    /// @notice A bond's money.
    /// @return stake All that is locked.
    /// @return reserved The part that proposals hold.
    /// @return unlocking The part that the seller asked for.
    /// @return unlocksAt When its notice ends, in seconds since 1970; 0 if it asked for none.
    function bonds(bytes32 bondId)
        external
        view
        returns (uint128 stake, uint128 reserved, uint128 unlocking, uint40 unlocksAt);

    /// @notice What became of a piece of evidence.
    /// @return status Whether it was proposed, and how that ended.
    /// @return challengeEnds Until when the seller may answer.
    /// @return buyer Who was harmed.
    /// @return amount How much is or was reserved.
    /// @return damage The buyer's most.
    /// @return answer The digest of the seller's answer; 0 if it gave none.
    function slashes(bytes32 bondId, bytes32 evidence)
        external
        view
        returns (Status status, uint40 challengeEnds, address buyer, uint128 amount, uint128 damage, bytes32 answer);

    /// @notice What slashes left for an account and it did not get yet.
    function credits(address account, address token) external view returns (uint256);

    /// @notice What arbiters sign to propose: EIP-712 `Slash(bytes32 bondId,bytes32 evidence,address buyer,
    /// uint128 damage,uint128 amount,uint40 deadline)`.
    function getSlashDigest(bytes32 bondId, Judgement calldata judgement) external view returns (bytes32);

    /// @notice What arbiters sign to uphold: EIP-712 `Uphold(bytes32 bondId,bytes32 evidence,bytes32 answer)`.
    function getUpholdDigest(bytes32 bondId, bytes32 evidence, bytes32 answer) external view returns (bytes32);

    /// @notice What arbiters sign to dismiss: EIP-712 `Dismiss(bytes32 bondId,bytes32 evidence)`.
    function getDismissDigest(bytes32 bondId, bytes32 evidence) external view returns (bytes32);
}
