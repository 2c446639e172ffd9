// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice Several calls in one, as the contract does it that x402's facilitators find at one address on every chain.
contract Multicall {
    struct Call {
        address target;
        bytes callData;
    }

    struct Result {
        bool success;
        bytes returnData;
    }

    error CallFailed(uint256 index);

    function tryAggregate(bool requireSuccess, Call[] calldata calls) external payable returns (Result[] memory all) {
        all = new Result[](calls.length);
        for (uint256 i; i < calls.length; ++i) {
            (all[i].success, all[i].returnData) = calls[i].target.call(calls[i].callData);
            if (requireSuccess && !all[i].success) revert CallFailed(i);
        }
    }
}
