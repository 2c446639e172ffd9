// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {IPaymentChannels} from "./IPaymentChannels.sol";
import {IDepositCollector} from "./collectors/IDepositCollector.sol";

/// @title Payment channels
/// @notice What each function does stands in {IPaymentChannels}.
/// @dev Without owner, upgrade or fee. Whatever moves tokens is guarded against reentrance; claims and the beginning of
/// a withdrawal call nobody that could change state.
contract PaymentChannels is IPaymentChannels, EIP712, Multicall, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    uint40 public constant MIN_WITHDRAW_DELAY = 15 minutes;
    uint40 public constant MAX_WITHDRAW_DELAY = 30 days;

    bytes32 private constant CHANNEL_CONFIG_TYPEHASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,"
        "address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 private constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 private constant REFUND_TYPEHASH = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
    bytes32 private constant CLAIM_ENTRY_TYPEHASH =
        keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
    bytes32 private constant CLAIM_BATCH_TYPEHASH = keccak256(
        "ClaimBatch(ClaimEntry[] claims)"
        "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
    );

    /// Each a slot of two amounts of 128 bits, read and written at once: claims are what the gas goes to.
    /// Channels: balance, then totalClaimed. Receivers: totalClaimed, then totalSettled.
    mapping(bytes32 channelId => uint256) private _channels;
    mapping(address receiver => mapping(address token => uint256)) private _receivers;

    struct Withdrawal {
        uint128 amount;
        uint40 initiatedAt;
    }

    /// @inheritdoc IPaymentChannels
    mapping(bytes32 channelId => Withdrawal) public pendingWithdrawals;

    /// @inheritdoc IPaymentChannels
    mapping(bytes32 channelId => uint256) public refundNonce;

    constructor() EIP712("x402 Batch Settlement", "1") {}

    /// @inheritdoc IPaymentChannels
    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external
        nonReentrant
    {
        _check(config);
        if (amount == 0) revert ZeroAmount();
        bytes32 channelId = getChannelId(config);
        (uint128 balance, uint128 claimed) = _unpacked(_channels[channelId]);
        if (balance == 0 && claimed == 0) emit ChannelCreated(channelId, config);
        balance += amount;
        _channels[channelId] = _packed(balance, claimed);
        emit Deposited(channelId, msg.sender, amount, balance);

        IERC20 token = IERC20(config.token);
        uint256 held = token.balanceOf(address(this));
        IDepositCollector(collector).collect(config.payer, config.token, amount, channelId, msg.sender, collectorData);
        uint256 holds = token.balanceOf(address(this));
        if (holds < held || holds - held != amount) revert WrongDeposit(amount, holds < held ? 0 : holds - held);
    }

    /// @inheritdoc IPaymentChannels
    function claim(VoucherClaim[] calldata voucherClaims) external {
        if (voucherClaims.length == 0) revert NoClaims();
        bytes32 domain = _domainSeparatorV4();
        address receiver = address(0);
        address token = address(0);
        uint256 sum = 0;
        for (uint256 i; i < voucherClaims.length; ++i) {
            VoucherClaim calldata row = voucherClaims[i];
            ChannelConfig calldata config = row.voucher.channel;
            if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) {
                revert NotReceiver(msg.sender);
            }
            if (config.receiver != receiver || config.token != token) {
                _credit(receiver, token, sum);
                (receiver, token, sum) = (config.receiver, config.token, 0);
            }
            sum += _claim(row, _channelId(domain, config), domain);
        }
        _credit(receiver, token, sum);
    }

    /// @inheritdoc IPaymentChannels
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature) external {
        if (voucherClaims.length == 0) revert NoClaims();
        address authorizer = voucherClaims[0].voucher.channel.receiverAuthorizer;
        _checkAuthorizer(authorizer, _claimSigned(voucherClaims, authorizer), authorizerSignature);
    }

    /// Claims rows that one authorizer signs for; returns what it has to sign.
    function _claimSigned(VoucherClaim[] calldata voucherClaims, address authorizer) private returns (bytes32) {
        bytes32 domain = _domainSeparatorV4();
        bytes32[] memory entries = new bytes32[](voucherClaims.length);
        address receiver = address(0);
        address token = address(0);
        uint256 sum = 0;
        for (uint256 i; i < entries.length; ++i) {
            VoucherClaim calldata row = voucherClaims[i];
            ChannelConfig calldata config = row.voucher.channel;
            if (config.receiverAuthorizer != authorizer) {
                revert AuthorizersDiffer(authorizer, config.receiverAuthorizer);
            }
            if (config.receiver != receiver || config.token != token) {
                _credit(receiver, token, sum);
                (receiver, token, sum) = (config.receiver, config.token, 0);
            }
            bytes32 channelId = _channelId(domain, config);
            entries[i] = _entryHash(row, channelId);
            sum += _claim(row, channelId, domain);
        }
        _credit(receiver, token, sum);
        return _batchDigest(domain, entries);
    }

    /// @inheritdoc IPaymentChannels
    function settle(address receiver, address token) external nonReentrant {
        (uint128 claimed, uint128 settled) = _unpacked(_receivers[receiver][token]);
        uint128 amount = claimed - settled;
        if (amount == 0) return;
        _receivers[receiver][token] = _packed(claimed, claimed);
        emit Settled(receiver, token, msg.sender, amount);
        IERC20(token).safeTransfer(receiver, amount);
    }

    /// @inheritdoc IPaymentChannels
    function refund(ChannelConfig calldata config, uint128 amount) external nonReentrant {
        if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) revert NotReceiver(msg.sender);
        bytes32 channelId = getChannelId(config);
        ++refundNonce[channelId];
        _refund(config, channelId, amount);
    }

    /// @inheritdoc IPaymentChannels
    function refundWithSignature(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 nonce,
        bytes calldata receiverAuthorizerSignature
    ) external nonReentrant {
        bytes32 channelId = getChannelId(config);
        uint256 expected = refundNonce[channelId];
        if (nonce != expected) revert WrongRefundNonce(expected, nonce);
        refundNonce[channelId] = expected + 1;
        _checkAuthorizer(
            config.receiverAuthorizer, getRefundDigest(channelId, nonce, amount), receiverAuthorizerSignature
        );
        _refund(config, channelId, amount);
    }

    /// @inheritdoc IPaymentChannels
    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external {
        _checkPayer(config);
        if (amount == 0) revert ZeroAmount();
        bytes32 channelId = getChannelId(config);
        if (pendingWithdrawals[channelId].amount != 0) revert WithdrawPending(channelId);
        uint128 unclaimed = _unclaimed(channelId);
        if (amount > unclaimed) revert WithdrawExceedsUnclaimed(channelId, amount, unclaimed);
        uint40 now_ = uint40(block.timestamp);
        pendingWithdrawals[channelId] = Withdrawal(amount, now_);
        emit WithdrawInitiated(channelId, amount, now_ + config.withdrawDelay);
    }

    /// @inheritdoc IPaymentChannels
    function finalizeWithdraw(ChannelConfig calldata config) external nonReentrant {
        _checkPayer(config);
        bytes32 channelId = getChannelId(config);
        Withdrawal memory pending = pendingWithdrawals[channelId];
        if (pending.amount == 0) revert NoWithdrawPending(channelId);
        uint256 finalizeAfter = uint256(pending.initiatedAt) + config.withdrawDelay;
        if (block.timestamp < finalizeAfter) revert WithdrawTooEarly(channelId, finalizeAfter);
        delete pendingWithdrawals[channelId];
        uint128 amount = _min(pending.amount, _unclaimed(channelId));
        emit WithdrawFinalized(channelId, msg.sender, amount);
        if (amount != 0) _giveBack(config, channelId, amount);
    }

    /// @inheritdoc IPaymentChannels
    function getChannelId(ChannelConfig calldata config) public view returns (bytes32) {
        return _channelId(_domainSeparatorV4(), config);
    }

    /// @inheritdoc IPaymentChannels
    function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed) {
        return _unpacked(_channels[channelId]);
    }

    /// @inheritdoc IPaymentChannels
    function receivers(address receiver, address token)
        external
        view
        returns (uint128 totalClaimed, uint128 totalSettled)
    {
        return _unpacked(_receivers[receiver][token]);
    }

    /// @inheritdoc IPaymentChannels
    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) external view returns (bytes32) {
        return _voucherDigest(_domainSeparatorV4(), channelId, maxClaimableAmount);
    }

    /// @inheritdoc IPaymentChannels
    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(REFUND_TYPEHASH, channelId, nonce, amount)));
    }

    /// @inheritdoc IPaymentChannels
    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) external view returns (bytes32) {
        bytes32 domain = _domainSeparatorV4();
        bytes32[] memory entries = new bytes32[](voucherClaims.length);
        for (uint256 i; i < voucherClaims.length; ++i) {
            entries[i] = _entryHash(voucherClaims[i], _channelId(domain, voucherClaims[i].voucher.channel));
        }
        return _batchDigest(domain, entries);
    }

    /// Claims one row; returns by how much the channel's total grew. A row that is claimed already is checked as well.
    function _claim(VoucherClaim calldata row, bytes32 channelId, bytes32 domain) private returns (uint256) {
        uint128 total = row.totalClaimed;
        uint128 most = row.voucher.maxClaimableAmount;
        if (total > most) revert ClaimExceedsVoucher(channelId, total, most);
        if (!_vouched(row.voucher.channel, _voucherDigest(domain, channelId, most), row.signature)) {
            revert InvalidVoucherSignature(channelId);
        }
        uint256 channel = _channels[channelId];
        (uint128 balance, uint128 claimed) = _unpacked(channel);
        if (total > balance) revert ClaimExceedsBalance(channelId, total, balance);
        if (total <= claimed) return 0;
        uint256 amount = total - claimed;
        _channels[channelId] = channel + amount; // totalClaimed is the lower half
        emit Claimed(channelId, total);
        return amount;
    }

    /// Adds what consecutive rows claimed for one receiver and token: a write for all of them, not one for each.
    function _credit(address receiver, address token, uint256 amount) private {
        // totalClaimed is the upper half, so a total beyond 128 bits overflows the sum, which reverts.
        if (amount != 0) _receivers[receiver][token] += uint256(SafeCast.toUint128(amount)) << 128;
    }

    function _refund(ChannelConfig calldata config, bytes32 channelId, uint128 amount) private {
        if (amount == 0) revert ZeroAmount();
        amount = _min(amount, _unclaimed(channelId));
        if (amount == 0) return;
        uint128 pending = pendingWithdrawals[channelId].amount;
        if (pending > amount) pendingWithdrawals[channelId].amount = pending - amount;
        else if (pending != 0) delete pendingWithdrawals[channelId];
        emit Refunded(channelId, msg.sender, amount);
        _giveBack(config, channelId, amount);
    }

    function _giveBack(ChannelConfig calldata config, bytes32 channelId, uint128 amount) private {
        (uint128 balance, uint128 claimed) = _unpacked(_channels[channelId]);
        balance -= amount;
        _channels[channelId] = _packed(balance, claimed);
        if (balance == 0 && claimed == 0) emit ChannelClosed(channelId, config);
        IERC20(config.token).safeTransfer(config.payer, amount);
    }

    function _check(ChannelConfig calldata config) private view {
        if (config.payer == address(0) || config.receiver == address(0) || config.receiverAuthorizer == address(0)) {
            revert ZeroAddress();
        }
        if (config.token.code.length == 0) revert NotAToken(config.token);
        if (config.withdrawDelay < MIN_WITHDRAW_DELAY || config.withdrawDelay > MAX_WITHDRAW_DELAY) {
            revert WithdrawDelayOutOfRange(config.withdrawDelay);
        }
    }

    function _checkPayer(ChannelConfig calldata config) private view {
        if (msg.sender != config.payer && msg.sender != config.payerAuthorizer) revert NotPayer(msg.sender);
    }

    function _checkAuthorizer(address authorizer, bytes32 digest, bytes calldata signature) private view {
        if (!SignatureChecker.isValidSignatureNowCalldata(authorizer, digest, signature)) {
            revert InvalidAuthorizerSignature(authorizer);
        }
    }

    /// Whether the payer's side signed. An authorizer's key alone decides, whatever code its address has or gets: so a
    /// receiver that checked a voucher off chain knows that it will still hold when it claims.
    function _vouched(ChannelConfig calldata config, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bool)
    {
        address authorizer = config.payerAuthorizer;
        if (authorizer == address(0)) {
            return SignatureChecker.isValidSignatureNowCalldata(config.payer, digest, signature);
        }
        // slither-disable-next-line unused-return
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        return failure == ECDSA.RecoverError.NoError && signer == authorizer;
    }

    function _unclaimed(bytes32 channelId) private view returns (uint128) {
        (uint128 balance, uint128 claimed) = _unpacked(_channels[channelId]);
        return balance - claimed;
    }

    /// The struct's hash is over its seven words as they came: each is read and checked elsewhere, and a config that is
    /// not encoded canonically has an id that no deposit ever had.
    function _channelId(bytes32 domain, ChannelConfig calldata config) private pure returns (bytes32) {
        bytes32 typehash = CHANNEL_CONFIG_TYPEHASH;
        bytes32 hash;
        assembly ("memory-safe") {
            let start := mload(0x40)
            mstore(start, typehash)
            calldatacopy(add(start, 0x20), config, 0xe0)
            hash := keccak256(start, 0x100)
        }
        return MessageHashUtils.toTypedDataHash(domain, hash);
    }

    function _voucherDigest(bytes32 domain, bytes32 channelId, uint128 most) private pure returns (bytes32) {
        bytes32 typehash = VOUCHER_TYPEHASH;
        bytes32 hash;
        assembly ("memory-safe") {
            let start := mload(0x40)
            mstore(start, typehash)
            mstore(add(start, 0x20), channelId)
            mstore(add(start, 0x40), most)
            hash := keccak256(start, 0x60)
        }
        return MessageHashUtils.toTypedDataHash(domain, hash);
    }

    function _entryHash(VoucherClaim calldata row, bytes32 channelId) private pure returns (bytes32) {
        return keccak256(abi.encode(CLAIM_ENTRY_TYPEHASH, channelId, row.voucher.maxClaimableAmount, row.totalClaimed));
    }

    function _batchDigest(bytes32 domain, bytes32[] memory entries) private pure returns (bytes32) {
        bytes32 hash = keccak256(abi.encode(CLAIM_BATCH_TYPEHASH, keccak256(abi.encodePacked(entries))));
        return MessageHashUtils.toTypedDataHash(domain, hash);
    }

    function _packed(uint128 upper, uint128 lower) private pure returns (uint256) {
        return (uint256(upper) << 128) | lower;
    }

    function _unpacked(uint256 packed) private pure returns (uint128 upper, uint128 lower) {
        return (uint128(packed >> 128), uint128(packed));
    }

    function _min(uint128 a, uint128 b) private pure returns (uint128) {
        return a < b ? a : b;
    }
}
