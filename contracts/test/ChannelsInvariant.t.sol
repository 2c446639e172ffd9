// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/IPaymentChannels.sol";
import {ChannelsTest} from "./support/ChannelsTest.sol";

/// @notice Uses channels of two receivers in any order, with amounts that are often too large, and remembers what
/// was promised and what left.
contract ChannelsActor is ChannelsTest {
    uint256 internal constant COUNT = 2;

    address internal other;
    mapping(uint256 => uint128) public promised;
    mapping(address => uint256) public gained;
    uint256 public givenBack;
    uint256 public deposited;
    bool public tookClaimed;

    constructor() {
        setUp();
        other = vm.addr(0x07E4);
    }

    function config_(uint256 channel) internal view returns (IPaymentChannels.ChannelConfig memory config) {
        config = configOf(channel % COUNT);
        if (channel % 2 == 1) config.receiver = other;
    }

    function unclaimedOf(IPaymentChannels.ChannelConfig memory config) internal view returns (uint256) {
        return balanceOf(config) - claimedOf(config);
    }

    function putIn(uint256 channel, uint128 amount) external {
        amount = uint128(bounded(amount, 1, 1000));
        deposited += amount;
        deposit(config_(channel), amount);
    }

    function claimSome(uint256 channel, uint128 most, uint128 total, bool signed_) external {
        IPaymentChannels.ChannelConfig memory config = config_(channel);
        most = uint128(bounded(most, 0, 4000));
        total = uint128(bounded(total, 0, 4000));
        if (most > promised[channel % COUNT]) promised[channel % COUNT] = most;
        bool fits = total <= most && total <= balanceOf(config);
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(config, most, total));
        bytes memory signature = signed(CLAIM_KEY, channels.getClaimBatchDigest(all));
        bool done;
        if (signed_) {
            vm.prank(stranger);
            (done,) = address(channels).call(abi.encodeCall(channels.claimWithSignature, (all, signature)));
        } else {
            vm.prank(config.receiver);
            (done,) = address(channels).call(abi.encodeCall(channels.claim, (all)));
        }
        assertTrue(done == fits, "a claim works if voucher and balance bear it");
    }

    function settleSome(uint256 channel) external {
        address to = config_(channel).receiver;
        uint256 before = dollar.balanceOf(to);
        vm.prank(stranger);
        channels.settle(to, address(dollar));
        gained[to] += dollar.balanceOf(to) - before;
    }

    function refundSome(uint256 channel, uint128 amount) external {
        IPaymentChannels.ChannelConfig memory config = config_(channel);
        uint256 most = unclaimedOf(config);
        uint256 before = dollar.balanceOf(payer);
        vm.prank(config.receiver);
        channels.refund(config, uint128(bounded(amount, 1, 500)));
        goesOut(dollar.balanceOf(payer) - before, most);
    }

    function beginWithdraw(uint256 channel, uint128 amount) external {
        IPaymentChannels.ChannelConfig memory config = config_(channel);
        amount = uint128(bounded(amount, 0, 1000));
        (uint128 pending,) = channels.pendingWithdrawals(channels.getChannelId(config));
        bool fits = amount != 0 && pending == 0 && amount <= unclaimedOf(config);
        vm.prank(payer);
        (bool done,) = address(channels).call(abi.encodeCall(channels.initiateWithdraw, (config, amount)));
        assertTrue(done == fits, "a withdrawal begins if that much is unclaimed");
    }

    function endWithdraw(uint256 channel, uint256 wait) external {
        IPaymentChannels.ChannelConfig memory config = config_(channel);
        vm.warp(block.timestamp + bounded(wait, 0, 2 * DELAY));
        (uint128 pending, uint40 since) = channels.pendingWithdrawals(channels.getChannelId(config));
        uint256 most = unclaimedOf(config);
        uint256 before = dollar.balanceOf(payer);
        vm.prank(payer);
        (bool done,) = address(channels).call(abi.encodeCall(channels.finalizeWithdraw, (config)));
        assertTrue(done == (pending != 0 && block.timestamp >= since + DELAY), "a withdrawal ends after its notice");
        goesOut(dollar.balanceOf(payer) - before, most < pending ? most : pending);
    }

    function goesOut(uint256 amount, uint256 most) internal {
        givenBack += amount;
        if (amount > most) tookClaimed = true;
    }

    // What has to hold

    function checkSolvent() external view {
        uint256 owed;
        for (uint256 i; i < COUNT; ++i) {
            IPaymentChannels.ChannelConfig memory config = config_(i);
            assertAtMost(claimedOf(config), balanceOf(config), "claimed of the balance");
            owed += unclaimedOf(config);
        }
        address[2] memory all = [receiver, other];
        for (uint256 i; i < 2; ++i) {
            (uint128 claimed, uint128 settled) = channels.receivers(all[i], address(dollar));
            assertEq(settled, gained[all[i]], "settled is what the receiver got");
            owed += claimed - settled;
        }
        assertEq(dollar.balanceOf(address(channels)), owed, "holds what it owes");
        assertEq(deposited, owed + gained[receiver] + gained[other] + givenBack, "all of it is somewhere");
    }

    function checkVouchers() external view {
        uint256[2] memory total;
        for (uint256 i; i < COUNT; ++i) {
            assertAtMost(claimedOf(config_(i)), promised[i], "claimed of what was promised");
            total[i % 2] += claimedOf(config_(i));
        }
        (uint128 mine,) = channels.receivers(receiver, address(dollar));
        (uint128 others,) = channels.receivers(other, address(dollar));
        assertEq(mine, total[0], "a receiver has what its channels gave");
        assertEq(others, total[1], "and so has the other");
        assertEq(dollar.balanceOf(stranger), 0, "nobody else gains");
        assertEq(dollar.balanceOf(vm.addr(CLAIM_KEY)), 0, "nor who claims for them");
    }

    function checkWithdrawals() external view {
        assertTrue(!tookClaimed, "what left was unclaimed");
    }
}

contract ChannelsInvariantTest {
    ChannelsActor internal actor;

    function setUp() external {
        actor = new ChannelsActor();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(actor);
    }

    struct Selectors {
        address target;
        bytes4[] selectors;
    }

    function targetSelectors() external view returns (Selectors[] memory all) {
        all = new Selectors[](1);
        all[0].target = address(actor);
        all[0].selectors = new bytes4[](6);
        all[0].selectors[0] = actor.putIn.selector;
        all[0].selectors[1] = actor.claimSome.selector;
        all[0].selectors[2] = actor.settleSome.selector;
        all[0].selectors[3] = actor.refundSome.selector;
        all[0].selectors[4] = actor.beginWithdraw.selector;
        all[0].selectors[5] = actor.endWithdraw.selector;
    }

    /// The contract holds what it owes; nobody but the receiver gains from a voucher; a withdrawal takes no more than is
    /// unclaimed.
    function invariant_money_is_where_it_belongs() external view {
        actor.checkSolvent();
        actor.checkVouchers();
        actor.checkWithdrawals();
    }
}
