// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../../src/IPaymentChannels.sol";
import {Dollar} from "./Tokens.sol";
import {Test} from "./Test.sol";

/// @notice Channels of one payer to one receiver in dollars.
abstract contract ChannelsTest is Test {
    uint256 internal constant PAYER_KEY = 0xA11CE;
    uint256 internal constant VOUCHER_KEY = 0xA117;
    uint256 internal constant CLAIM_KEY = 0xB0B;
    uint40 internal constant DELAY = 1 days;

    IPaymentChannels internal channels;
    address internal approval;
    address internal authorization;
    Dollar internal dollar;
    address internal payer;
    address internal receiver;
    address internal stranger;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        channels = IPaymentChannels(deployed("PaymentChannels", ""));
        approval = deployed("ApproveCollector", abi.encode(channels));
        authorization = deployed("ERC3009Collector", abi.encode(channels));
        dollar = new Dollar();
        payer = vm.addr(PAYER_KEY);
        receiver = vm.addr(0xBEEF);
        stranger = vm.addr(0x5742A6);
        dollar.mint(payer, 1_000_000_000);
        vm.prank(payer);
        dollar.approve(approval, type(uint256).max);
    }

    function configOf(uint256 salt) internal view returns (IPaymentChannels.ChannelConfig memory) {
        return IPaymentChannels.ChannelConfig({
            payer: payer,
            payerAuthorizer: vm.addr(VOUCHER_KEY),
            receiver: receiver,
            receiverAuthorizer: vm.addr(CLAIM_KEY),
            token: address(dollar),
            withdrawDelay: DELAY,
            salt: keccak256(abi.encode(salt))
        });
    }

    function opened(uint256 salt, uint128 amount) internal returns (IPaymentChannels.ChannelConfig memory config) {
        config = configOf(salt);
        deposit(config, amount);
    }

    function deposit(IPaymentChannels.ChannelConfig memory config, uint128 amount) internal {
        vm.prank(config.payer);
        channels.deposit(config, amount, approval, "");
    }

    function rowOf(IPaymentChannels.ChannelConfig memory config, uint128 most, uint128 total)
        internal
        view
        returns (IPaymentChannels.VoucherClaim memory)
    {
        bytes32 digest = channels.getVoucherDigest(channels.getChannelId(config), most);
        return IPaymentChannels.VoucherClaim(IPaymentChannels.Voucher(config, most), signed(VOUCHER_KEY, digest), total);
    }

    function rows(IPaymentChannels.VoucherClaim memory row)
        internal
        pure
        returns (IPaymentChannels.VoucherClaim[] memory all)
    {
        all = new IPaymentChannels.VoucherClaim[](1);
        all[0] = row;
    }

    function claim(IPaymentChannels.ChannelConfig memory config, uint128 total) internal {
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(config, total, total));
        vm.prank(receiver);
        channels.claim(all);
    }

    function balanceOf(IPaymentChannels.ChannelConfig memory config) internal view returns (uint256 balance) {
        (balance,) = channels.channels(channels.getChannelId(config));
    }

    function claimedOf(IPaymentChannels.ChannelConfig memory config) internal view returns (uint256 claimed) {
        (, claimed) = channels.channels(channels.getChannelId(config));
    }
}
