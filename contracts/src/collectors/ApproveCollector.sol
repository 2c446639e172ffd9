// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {IDepositCollector} from "./IDepositCollector.sol";

/// @title Deposits of what the payer approved to this contract
/// @notice Works with every ERC-20 token. An allowance names no channel, so only the payer itself may have it
/// collected: anybody else would choose a channel of its own.
contract ApproveCollector is IDepositCollector {
    using SafeERC20 for IERC20;

    address public immutable channels;

    /// @notice The deposit was asked for by somebody else than the payer.
    error NotPayer(address depositor, address payer);

    /// @notice This collector takes no data.
    error UnexpectedData();

    constructor(address channels_) {
        channels = channels_;
    }

    /// @inheritdoc IDepositCollector
    function collect(
        address payer,
        address token,
        uint256 amount,
        bytes32,
        address depositor,
        bytes calldata collectorData
    ) external {
        if (msg.sender != channels) revert NotChannels(msg.sender);
        if (depositor != payer) revert NotPayer(depositor, payer);
        if (collectorData.length != 0) revert UnexpectedData();
        // slither-disable-next-line arbitrary-send-erc20
        IERC20(token).safeTransferFrom(payer, channels, amount);
    }
}
