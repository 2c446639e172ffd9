// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";

/// @notice A smart wallet that accepts the signatures of one key, followed by a byte of its own.
contract Wallet is IERC1271 {
    bytes32 private immutable ACCEPTED;

    constructor(bytes memory accepted) {
        ACCEPTED = keccak256(accepted);
    }

    function isValidSignature(bytes32, bytes calldata signature) external view returns (bytes4) {
        return keccak256(signature) == ACCEPTED ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}
