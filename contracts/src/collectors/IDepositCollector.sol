// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What fetches a payer's tokens for a deposit
/// @notice A collector is trusted by the payers that authorize it, not by the channels, which count what arrives.
interface IDepositCollector {
    /// @notice Only the channels contract may ask for tokens.
    error NotChannels(address sender);

    /// @notice Moves tokens of the payer to the channels contract, which is the caller.
    /// @param payer Whose tokens.
    /// @param token The ERC-20 token.
    /// @param amount How much; exactly this has to arrive.
    /// @param channelId The channel they are for.
    /// @param depositor Who asked the channels contract for the deposit.
    /// @param collectorData What this collector needs to know beyond that.
    function collect(
        address payer,
        address token,
        uint256 amount,
        bytes32 channelId,
        address depositor,
        bytes calldata collectorData
    ) external;
}
