// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Unidirectional payment channels with cumulative vouchers
/// @notice A payer deposits a token once, then signs vouchers off chain over a growing total; the receiver claims the
/// latest of each channel in batches and is paid by one transfer. Functions, structs and EIP-712 types are those of
/// x402's `batch-settlement` scheme on EVM, so that its clients and facilitators work with this contract.
/// @dev Money is counted per token: a token that lies about its balances harms the channels in that token alone.
interface IPaymentChannels {
    /// @notice What a channel is. Its EIP-712 digest is the channel's id, so nothing of it ever changes.
    /// @param payer Whose tokens these are, and who gets back what is left.
    /// @param payerAuthorizer Whose key signs the vouchers; zero: the payer does, by ERC-1271 if it is a contract.
    /// @param receiver Who is paid.
    /// @param receiverAuthorizer Who may claim and refund for the receiver, by a call or by a signature.
    /// @param token The ERC-20 token that is paid.
    /// @param withdrawDelay Seconds of notice before the payer takes back what is unclaimed: 15 minutes to 30 days.
    /// @param salt Tells channels apart that are otherwise the same.
    struct ChannelConfig {
        address payer;
        address payerAuthorizer;
        address receiver;
        address receiverAuthorizer;
        address token;
        uint40 withdrawDelay;
        bytes32 salt;
    }

    /// @notice A payer's promise: the receiver may claim up to this total from the channel.
    struct Voucher {
        ChannelConfig channel;
        uint128 maxClaimableAmount;
    }

    /// @notice One row of a claim.
    /// @param voucher The promise.
    /// @param signature The payer's over it.
    /// @param totalClaimed The channel's total after this claim, at most the voucher's.
    struct VoucherClaim {
        Voucher voucher;
        bytes signature;
        uint128 totalClaimed;
    }

    /// @notice The first deposit of a channel; again after a channel that never paid was emptied.
    event ChannelCreated(bytes32 indexed channelId, ChannelConfig config);

    /// @notice A channel that never paid was emptied.
    event ChannelClosed(bytes32 indexed channelId, ChannelConfig config);

    /// @notice Tokens came in.
    event Deposited(bytes32 indexed channelId, address indexed sender, uint128 amount, uint128 newBalance);

    /// @notice The receiver claimed, up to this total; the tokens move when it settles.
    event Claimed(bytes32 indexed channelId, uint128 totalClaimed);

    /// @notice What was claimed and not yet paid went to the receiver.
    event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);

    /// @notice The receiver's side let unclaimed tokens go back to the payer.
    event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);

    /// @notice The payer wants unclaimed tokens back: what vouchers promise has to be claimed before `finalizeAfter`.
    event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);

    /// @notice The notice is over and the payer took what was still unclaimed; 0 if nothing was.
    event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);

    /// @notice The payer, the receiver or the receiver's authorizer is the zero address.
    error ZeroAddress();

    /// @notice There is no contract at the token's address.
    error NotAToken(address token);

    /// @notice The notice of withdrawal is not within 15 minutes and 30 days.
    error WithdrawDelayOutOfRange(uint40 withdrawDelay);

    /// @notice An amount of nothing.
    error ZeroAmount();

    /// @notice The collector brought another amount than it was asked for; tokens that charge for transfers do so.
    error WrongDeposit(uint256 expected, uint256 received);

    /// @notice A claim without rows.
    error NoClaims();

    /// @notice Only the receiver and its authorizer may do this.
    error NotReceiver(address sender);

    /// @notice Only the payer and its authorizer may do this.
    error NotPayer(address sender);

    /// @notice The rows of a signed claim have different authorizers, and one signature stands for one.
    error AuthorizersDiffer(address expected, address found);

    /// @notice The voucher is not signed by the channel's payer.
    error InvalidVoucherSignature(bytes32 channelId);

    /// @notice The signature is not the receiver's authorizer's.
    error InvalidAuthorizerSignature(address receiverAuthorizer);

    /// @notice More was to be claimed than the voucher promises.
    error ClaimExceedsVoucher(bytes32 channelId, uint128 totalClaimed, uint128 maxClaimableAmount);

    /// @notice More was to be claimed than the channel holds.
    error ClaimExceedsBalance(bytes32 channelId, uint128 totalClaimed, uint128 balance);

    /// @notice The refund was signed for another nonce: it was used already, or refunds came between.
    error WrongRefundNonce(uint256 expected, uint256 found);

    /// @notice More was to be withdrawn than is unclaimed.
    error WithdrawExceedsUnclaimed(bytes32 channelId, uint128 amount, uint128 unclaimed);

    /// @notice A withdrawal is under way; it is finalized first.
    error WithdrawPending(bytes32 channelId);

    /// @notice No withdrawal is under way.
    error NoWithdrawPending(bytes32 channelId);

    /// @notice The notice of the withdrawal is not over.
    error WithdrawTooEarly(bytes32 channelId, uint256 finalizeAfter);

    /// @notice Puts tokens of the payer into a channel, which the first deposit opens.
    /// @dev Anyone may call it: the collector sees to it that the payer agreed to this very channel. Exactly `amount`
    /// has to arrive.
    /// @param config The channel.
    /// @param amount How much.
    /// @param collector The contract that fetches the tokens.
    /// @param collectorData What the collector needs to know, such as the payer's signature.
    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external;

    /// @notice Claims from channels, called by the receiver or its authorizer of every one. No tokens move.
    /// @dev A row at or below what was claimed already changes nothing.
    function claim(VoucherClaim[] calldata voucherClaims) external;

    /// @notice Claims from channels that have one receiver's authorizer, with its signature; anyone may bring it.
    /// @dev The signature needs no nonce: what is claimed already is not claimed again.
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature) external;

    /// @notice Pays a receiver what was claimed for it in a token; anyone may call it. Nothing to pay is no error.
    function settle(address receiver, address token) external;

    /// @notice Gives unclaimed tokens back to the payer at once, called by the receiver or its authorizer.
    /// @dev At most what is unclaimed; a withdrawal under way shrinks by what was given back. Uses up a nonce even if
    /// nothing is unclaimed, so signatures over the former nonce are void.
    function refund(ChannelConfig calldata config, uint128 amount) external;

    /// @notice Gives unclaimed tokens back as the receiver's authorizer signed; anyone may bring it.
    function refundWithSignature(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 nonce,
        bytes calldata receiverAuthorizerSignature
    ) external;

    /// @notice Begins the notice after which the payer takes back unclaimed tokens. By the payer or its authorizer.
    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external;

    /// @notice Ends a withdrawal whose notice is over: the payer gets the amount, or less if less is unclaimed by now.
    function finalizeWithdraw(ChannelConfig calldata config) external;

    /// @notice The channel's id: the EIP-712 digest of its config, bound to this chain and contract.
    function getChannelId(ChannelConfig calldata config) external view returns (bytes32);

    /// @notice A channel's money.
    /// @return balance All deposits less withdrawals and refunds; claims do not lower it.
    /// @return totalClaimed What the receiver claimed of it.
    function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed);

    /// @notice A channel's withdrawal under way.
    /// @return amount How much; 0 if there is none.
    /// @return initiatedAt When it began, in seconds since 1970; 0 if there is none.
    function pendingWithdrawals(bytes32 channelId) external view returns (uint128 amount, uint40 initiatedAt);

    /// @notice A receiver's money in a token, over all its channels.
    function receivers(address receiver, address token)
        external
        view
        returns (uint128 totalClaimed, uint128 totalSettled);

    /// @notice The nonce that the next signed refund of a channel has to name.
    function refundNonce(bytes32 channelId) external view returns (uint256);

    /// @notice What a payer signs: EIP-712 `Voucher(bytes32 channelId,uint128 maxClaimableAmount)`.
    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) external view returns (bytes32);

    /// @notice What a refund's signature covers: EIP-712 `Refund(bytes32 channelId,uint256 nonce,uint128 amount)`.
    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) external view returns (bytes32);

    /// @notice What a claim's signature covers: EIP-712 `ClaimBatch(ClaimEntry[] claims)`.
    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) external view returns (bytes32);
}
