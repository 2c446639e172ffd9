// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";

import {IDepositCollector} from "./IDepositCollector.sol";

/// @notice The form of `receiveWithAuthorization` that newer USDC has for signatures of any length (smart wallets).
interface IERC3009Bytes {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}

/// @title Deposits by EIP-3009: the payer signs, anyone pays the gas
/// @notice The payer authorizes this contract to receive, with the nonce `keccak256(abi.encode(channelId, salt))`: so
/// whoever relays the authorization can bring the tokens into that channel and nowhere else.
/// `collectorData` is `abi.encode(uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature)`.
contract ERC3009Collector is IDepositCollector {
    using SafeERC20 for IERC20;

    struct Authorization {
        address from;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
        bytes signature;
    }

    address public immutable channels;

    constructor(address channels_) {
        channels = channels_;
    }

    /// @inheritdoc IDepositCollector
    function collect(
        address payer,
        address token,
        uint256 amount,
        bytes32 channelId,
        address,
        bytes calldata collectorData
    ) external {
        if (msg.sender != channels) revert NotChannels(msg.sender);
        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(collectorData, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));
        _receive(token, Authorization(payer, amount, validAfter, validBefore, nonce, signature));
        IERC20(token).safeTransfer(channels, amount);
    }

    /// Every EIP-3009 token has the form with a key's signature; not every one has the other.
    function _receive(address token, Authorization memory a) private {
        if (a.signature.length == 65) {
            (uint8 v, bytes32 r, bytes32 s) = ECDSA.parse(a.signature);
            IERC3009(token)
                .receiveWithAuthorization(a.from, address(this), a.value, a.validAfter, a.validBefore, a.nonce, v, r, s);
        } else {
            IERC3009Bytes(token)
                .receiveWithAuthorization(
                    a.from, address(this), a.value, a.validAfter, a.validBefore, a.nonce, a.signature
                );
        }
    }
}
