// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/IPaymentChannels.sol";
import {ChannelsTest} from "./support/ChannelsTest.sol";

/// @notice What a transaction costs, its call data included. Each call is a transaction of its own here.
/// forge-config: default.isolate = true
contract GasTest is ChannelsTest {
    uint128 internal constant DEPOSIT = 1_000_000;

    event Cost(string what, uint256 gas);

    /// Opens channels and claims from each a first time: what a seller's later claims find.
    function used(uint256 count) internal returns (IPaymentChannels.VoucherClaim[] memory all) {
        all = new IPaymentChannels.VoucherClaim[](count);
        for (uint256 i; i < count; ++i) {
            all[i] = rowOf(opened(i, DEPOSIT), 100_003, 100_003);
        }
        vm.prank(receiver);
        channels.claim(all);
        for (uint256 i; i < count; ++i) {
            all[i] = rowOf(configOf(i), 312_345, 312_345);
        }
    }

    function cost(string memory what) internal returns (uint256 gas) {
        gas = vm.lastCallGas().gasTotalUsed;
        emit Cost(what, gas);
    }

    function claimCost(uint256 count, string memory what) internal returns (uint256) {
        IPaymentChannels.VoucherClaim[] memory all = used(count);
        vm.prank(receiver);
        channels.claim(all);
        return cost(what) / count;
    }

    function test_a_claim_of_one_channel_costs_at_most_43900() public {
        assertAtMost(claimCost(1, "claim of 1"), 43_900, "gas");
    }

    function test_a_claim_of_ten_channels_costs_at_most_19300_each() public {
        assertAtMost(claimCost(10, "claim of 10"), 19_300, "gas");
    }

    function test_a_claim_of_fifty_channels_costs_at_most_17200_each() public {
        assertAtMost(claimCost(50, "claim of 50"), 17_200, "gas");
    }

    function test_deposit_settlement_and_refund_cost_at_most_what_they_did() public {
        opened(0, DEPOSIT);
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        assertAtMost(cost("deposit that opens a channel"), 80_000, "gas of an opening deposit");
        deposit(config, DEPOSIT);
        assertAtMost(cost("deposit into a channel"), 60_000, "gas of a deposit");
        claim(config, 100_003);
        channels.settle(receiver, address(dollar));
        claim(config, 200_003);
        channels.settle(receiver, address(dollar));
        assertAtMost(cost("settlement"), 48_000, "gas of a settlement");
        vm.prank(receiver);
        channels.refund(config, 1_000);
        vm.prank(receiver);
        channels.refund(config, 1_000);
        assertAtMost(cost("refund"), 60_000, "gas of a refund");
    }
}
