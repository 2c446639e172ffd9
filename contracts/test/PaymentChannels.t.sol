// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/IPaymentChannels.sol";
import {IDepositCollector} from "../src/collectors/IDepositCollector.sol";
import {ChannelsTest} from "./support/ChannelsTest.sol";
import {CallingToken, FalseToken, TaxedToken} from "./support/Tokens.sol";
import {Wallet} from "./support/Wallets.sol";

interface IMulticall {
    function multicall(bytes[] calldata data) external returns (bytes[] memory results);
}

interface ICollectorErrors {
    error NotPayer(address depositor, address payer);
    error UnexpectedData();
}

interface IGuardErrors {
    error ReentrancyGuardReentrantCall();
}

/// @notice Brings tokens without asking anybody, or brings none.
contract Donor is IDepositCollector {
    uint256 public brings;

    function bring(uint256 amount) external {
        brings = amount;
    }

    function collect(address, address token, uint256, bytes32, address, bytes calldata) external {
        (bool done,) = token.call(abi.encodeWithSignature("mint(address,uint256)", msg.sender, brings));
        require(done);
    }
}

contract PaymentChannelsTest is ChannelsTest {
    uint128 internal constant DEPOSIT = 1_000_000;

    event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);

    function refused(bytes4 selector) internal {
        vm.expectRevert(abi.encodeWithSelector(selector));
    }

    // Deposits

    function test_the_first_deposit_opens_a_channel_and_the_next_tops_it_up() public {
        vm.recordLogs();
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        bytes32 created = vm.getRecordedLogs()[0].topics[0];
        assertEq(created, IPaymentChannels.ChannelCreated.selector, "event");
        deposit(config, 5);
        assertEq(balanceOf(config), DEPOSIT + 5, "balance");
        assertEq(claimedOf(config), 0, "claimed");
        assertEq(dollar.balanceOf(address(channels)), DEPOSIT + 5, "held");
    }

    function depositRefused(IPaymentChannels.ChannelConfig memory config, bytes memory why) internal {
        vm.prank(config.payer);
        vm.expectRevert(why);
        channels.deposit(config, DEPOSIT, approval, "");
    }

    function test_a_channel_needs_payer_receiver_and_authorizer() public {
        bytes memory why = abi.encodeWithSelector(IPaymentChannels.ZeroAddress.selector);
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.payer = address(0);
        depositRefused(config, why);
        config = configOf(1);
        config.receiver = address(0);
        depositRefused(config, why);
        config = configOf(1);
        config.receiverAuthorizer = address(0);
        depositRefused(config, why);
    }

    function test_a_token_has_code() public {
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.token = stranger;
        depositRefused(config, abi.encodeWithSelector(IPaymentChannels.NotAToken.selector, stranger));
    }

    function test_the_notice_is_within_15_minutes_and_30_days() public {
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        uint40[2] memory wrong = [uint40(899), 2_592_001];
        for (uint256 i; i < wrong.length; ++i) {
            config.withdrawDelay = wrong[i];
            depositRefused(config, abi.encodeWithSelector(IPaymentChannels.WithdrawDelayOutOfRange.selector, wrong[i]));
        }
        config.withdrawDelay = 900;
        deposit(config, 1);
        config.withdrawDelay = 2_592_000;
        deposit(config, 1);
    }

    function test_a_deposit_of_nothing_is_refused() public {
        vm.prank(payer);
        refused(IPaymentChannels.ZeroAmount.selector);
        channels.deposit(configOf(1), 0, approval, "");
    }

    function test_a_token_that_charges_for_transfers_is_refused() public {
        TaxedToken taxed = new TaxedToken();
        taxed.mint(payer, DEPOSIT);
        vm.prank(payer);
        taxed.approve(approval, DEPOSIT);
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.token = address(taxed);
        depositRefused(
            config, abi.encodeWithSelector(IPaymentChannels.WrongDeposit.selector, DEPOSIT, DEPOSIT - DEPOSIT / 100)
        );
    }

    function test_a_token_that_says_false_is_refused_in_and_out() public {
        FalseToken token = new FalseToken();
        token.mint(payer, DEPOSIT);
        vm.prank(payer);
        token.approve(approval, DEPOSIT);
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.token = address(token);
        vm.prank(payer);
        channels.deposit(config, 10, approval, "");
        claim(config, 4);
        token.refuse();
        vm.prank(payer);
        vm.expectRevert();
        channels.deposit(config, 10, approval, "");
        vm.expectRevert();
        channels.settle(receiver, address(token));
        (, uint128 settled) = channels.receivers(receiver, address(token));
        assertEq(settled, 0, "settled");
    }

    function test_a_collector_has_to_bring_exactly_what_is_deposited() public {
        Donor donor = new Donor();
        uint256[3] memory brought = [uint256(0), DEPOSIT - 1, DEPOSIT + 1];
        for (uint256 i; i < brought.length; ++i) {
            donor.bring(brought[i]);
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.WrongDeposit.selector, DEPOSIT, brought[i]));
            channels.deposit(configOf(1), DEPOSIT, address(donor), "");
        }
        donor.bring(DEPOSIT);
        channels.deposit(configOf(1), DEPOSIT, address(donor), "");
        assertEq(balanceOf(configOf(1)), DEPOSIT, "balance");
    }

    function test_an_allowance_is_collected_for_its_payer_alone() public {
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.receiver = stranger;
        config.receiverAuthorizer = stranger;
        vm.prank(stranger);
        vm.expectRevert(abi.encodeWithSelector(ICollectorErrors.NotPayer.selector, stranger, payer));
        channels.deposit(config, DEPOSIT, approval, "");
        vm.prank(payer);
        refused(ICollectorErrors.UnexpectedData.selector);
        channels.deposit(config, DEPOSIT, approval, "x");
    }

    function test_collectors_obey_the_channels_alone() public {
        bytes memory why = abi.encodeWithSelector(IDepositCollector.NotChannels.selector, stranger);
        vm.prank(stranger);
        vm.expectRevert(why);
        IDepositCollector(approval).collect(payer, address(dollar), 1, 0, payer, "");
        vm.prank(stranger);
        vm.expectRevert(why);
        IDepositCollector(authorization).collect(payer, address(dollar), 1, 0, payer, "");
    }

    function authorized(IPaymentChannels.ChannelConfig memory config, uint256 amount, uint256 salt)
        internal
        view
        returns (bytes memory)
    {
        bytes32 nonce = keccak256(abi.encode(channels.getChannelId(config), salt));
        bytes32 digest = dollar.authorization(payer, authorization, amount, 0, block.timestamp + 1 hours, nonce);
        return abi.encode(uint256(0), block.timestamp + 1 hours, salt, signed(PAYER_KEY, digest));
    }

    function test_anyone_may_bring_an_authorization_but_only_to_its_channel_and_amount() public {
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        bytes memory data = authorized(config, DEPOSIT, 7);
        vm.prank(stranger);
        vm.expectRevert();
        channels.deposit(configOf(2), DEPOSIT, authorization, data);
        vm.prank(stranger);
        vm.expectRevert();
        channels.deposit(config, DEPOSIT - 1, authorization, data);
        vm.prank(stranger);
        channels.deposit(config, DEPOSIT, authorization, data);
        assertEq(balanceOf(config), DEPOSIT, "balance");
        vm.prank(stranger);
        vm.expectRevert();
        channels.deposit(config, DEPOSIT, authorization, data);
    }

    function test_a_smart_wallet_authorizes_by_a_signature_of_its_own() public {
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.payer = address(new Wallet("a signature of another length"));
        dollar.mint(config.payer, DEPOSIT);
        bytes memory data =
            abi.encode(uint256(0), block.timestamp + 1 hours, uint256(7), bytes("a signature of another length"));
        channels.deposit(config, DEPOSIT, authorization, data);
        assertEq(balanceOf(config), DEPOSIT, "balance");
    }

    // Claims

    function test_a_claim_moves_totals_and_a_settlement_pays_them() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        claim(config, 300);
        claim(config, 700);
        assertEq(claimedOf(config), 700, "claimed");
        assertEq(balanceOf(config), DEPOSIT, "balance");
        assertEq(dollar.balanceOf(receiver), 0, "before");
        vm.expectEmit();
        emit Settled(receiver, address(dollar), stranger, 700);
        vm.prank(stranger);
        channels.settle(receiver, address(dollar));
        assertEq(dollar.balanceOf(receiver), 700, "after");
        channels.settle(receiver, address(dollar));
        assertEq(dollar.balanceOf(receiver), 700, "again");
        (uint128 claimed, uint128 settled) = channels.receivers(receiver, address(dollar));
        assertEq(claimed, 700, "receiver's claimed");
        assertEq(settled, 700, "receiver's settled");
    }

    function test_less_than_the_voucher_may_be_claimed_and_the_rest_later() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(config, 500, 200));
        vm.prank(vm.addr(CLAIM_KEY));
        channels.claim(all);
        assertEq(claimedOf(config), 200, "part");
        all[0].totalClaimed = 500;
        vm.prank(receiver);
        channels.claim(all);
        assertEq(claimedOf(config), 500, "all");
    }

    function test_a_row_that_is_claimed_already_changes_nothing() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        claim(config, 500);
        vm.recordLogs();
        claim(config, 500);
        claim(config, 400);
        assertEq(vm.getRecordedLogs().length, 0, "events");
        assertEq(claimedOf(config), 500, "claimed");
    }

    function claimRefused(IPaymentChannels.VoucherClaim memory row, bytes memory why) internal {
        IPaymentChannels.VoucherClaim[] memory all = rows(row);
        vm.prank(receiver);
        vm.expectRevert(why);
        channels.claim(all);
    }

    function test_a_claim_is_the_receivers_alone() public {
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(opened(1, DEPOSIT), 500, 500));
        address[3] memory others = [stranger, payer, vm.addr(VOUCHER_KEY)];
        for (uint256 i; i < others.length; ++i) {
            vm.prank(others[i]);
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.NotReceiver.selector, others[i]));
            channels.claim(all);
        }
    }

    function test_a_claim_exceeds_neither_voucher_nor_balance() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        bytes32 id = channels.getChannelId(config);
        claimRefused(
            rowOf(config, 500, 501), abi.encodeWithSelector(IPaymentChannels.ClaimExceedsVoucher.selector, id, 501, 500)
        );
        claimRefused(
            rowOf(config, DEPOSIT + 1, DEPOSIT + 1),
            abi.encodeWithSelector(IPaymentChannels.ClaimExceedsBalance.selector, id, DEPOSIT + 1, DEPOSIT)
        );
    }

    function test_a_claim_without_rows_is_refused() public {
        refused(IPaymentChannels.NoClaims.selector);
        channels.claim(new IPaymentChannels.VoucherClaim[](0));
        refused(IPaymentChannels.NoClaims.selector);
        channels.claimWithSignature(new IPaymentChannels.VoucherClaim[](0), "");
    }

    function invalid(IPaymentChannels.ChannelConfig memory config) internal view returns (bytes memory) {
        return abi.encodeWithSelector(IPaymentChannels.InvalidVoucherSignature.selector, channels.getChannelId(config));
    }

    function test_a_voucher_holds_for_its_channel_amount_and_signer_alone() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        IPaymentChannels.ChannelConfig memory other = opened(2, DEPOSIT);
        IPaymentChannels.VoucherClaim memory row = rowOf(config, 500, 500);
        row.voucher.channel = other;
        claimRefused(row, invalid(other));
        row = rowOf(config, 500, 500);
        row.voucher.maxClaimableAmount = 501;
        claimRefused(row, invalid(config));
        row = rowOf(config, 500, 500);
        bytes32 digest = channels.getVoucherDigest(channels.getChannelId(config), 500);
        row.signature = signed(PAYER_KEY, digest); // the payer named another key
        claimRefused(row, invalid(config));
        row.signature = "";
        claimRefused(row, invalid(config));
        row.signature = new bytes(65);
        claimRefused(row, invalid(config));
    }

    function test_the_other_signature_of_a_voucher_is_refused() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        IPaymentChannels.VoucherClaim memory row = rowOf(config, 500, 500);
        bytes32 digest = channels.getVoucherDigest(channels.getChannelId(config), 500);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(VOUCHER_KEY, digest);
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        row.signature = abi.encodePacked(r, order - uint256(s), v == 27 ? 28 : 27);
        claimRefused(row, invalid(config));
    }

    function test_a_voucher_for_another_contract_or_chain_is_refused() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        IPaymentChannels ours = channels;
        channels = IPaymentChannels(deployed("PaymentChannels", ""));
        IPaymentChannels.VoucherClaim memory row = rowOf(config, 500, 500);
        channels = ours;
        claimRefused(row, invalid(config));
        row = rowOf(config, 500, 500);
        vm.chainId(block.chainid + 1);
        bytes32 id = channels.getChannelId(config);
        claimRefused(row, abi.encodeWithSelector(IPaymentChannels.InvalidVoucherSignature.selector, id));
    }

    function test_a_key_signs_for_its_address_whatever_code_that_gets() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        vm.etch(vm.addr(VOUCHER_KEY), address(new Wallet("")).code);
        claim(config, 500);
        assertEq(claimedOf(config), 500, "claimed");
    }

    function test_without_an_authorizer_the_payer_signs_by_key_or_by_contract() public {
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.payerAuthorizer = address(0);
        deposit(config, DEPOSIT);
        bytes32 digest = channels.getVoucherDigest(channels.getChannelId(config), 500);
        IPaymentChannels.VoucherClaim memory row =
            IPaymentChannels.VoucherClaim(IPaymentChannels.Voucher(config, 500), signed(PAYER_KEY, digest), 500);
        IPaymentChannels.VoucherClaim[] memory all = rows(row);
        vm.prank(receiver);
        channels.claim(all);
        assertEq(claimedOf(config), 500, "key");

        config.payer = address(new Wallet("yes"));
        Donor donor = new Donor();
        donor.bring(DEPOSIT);
        channels.deposit(config, DEPOSIT, address(donor), "");
        row = IPaymentChannels.VoucherClaim(IPaymentChannels.Voucher(config, 500), "no", 500);
        claimRefused(row, invalid(config));
        row.signature = "yes";
        all = rows(row);
        vm.prank(receiver);
        channels.claim(all);
        assertEq(claimedOf(config), 500, "contract");
    }

    function test_rows_of_several_receivers_and_tokens_are_credited_apart() public {
        CallingToken other = new CallingToken();
        Donor donor = new Donor();
        donor.bring(DEPOSIT);
        IPaymentChannels.VoucherClaim[] memory all = new IPaymentChannels.VoucherClaim[](4);
        for (uint256 i; i < 4; ++i) {
            IPaymentChannels.ChannelConfig memory config = configOf(i);
            if (i == 1) config.receiver = stranger;
            if (i == 2) config.token = address(other);
            channels.deposit(config, DEPOSIT, address(donor), "");
            all[i] = rowOf(config, uint128(100 + i), uint128(100 + i));
        }
        vm.prank(vm.addr(CLAIM_KEY));
        channels.claim(all);
        (uint128 mine,) = channels.receivers(receiver, address(dollar));
        (uint128 theirs,) = channels.receivers(stranger, address(dollar));
        (uint128 others,) = channels.receivers(receiver, address(other));
        assertEq(mine, 203, "two rows");
        assertEq(theirs, 101, "another receiver");
        assertEq(others, 102, "another token");
    }

    function test_a_total_beyond_128_bits_is_refused_and_spills_into_nothing() public {
        CallingToken token = new CallingToken();
        Donor donor = new Donor();
        donor.bring(type(uint128).max);
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.token = address(token);
        channels.deposit(config, type(uint128).max, address(donor), "");
        claim(config, type(uint128).max);
        assertEq(balanceOf(config), type(uint128).max, "balance");
        assertEq(claimedOf(config), type(uint128).max, "claimed");
        donor.bring(1);
        vm.expectRevert();
        channels.deposit(config, 1, address(donor), "");

        channels.settle(receiver, address(token));
        vm.prank(receiver);
        token.transfer(stranger, type(uint128).max);
        config = configOf(2);
        config.token = address(token);
        channels.deposit(config, 1, address(donor), "");
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(config, 1, 1));
        vm.prank(receiver);
        vm.expectRevert();
        channels.claim(all);
        (uint128 claimed, uint128 settled) = channels.receivers(receiver, address(token));
        assertEq(claimed, type(uint128).max, "receiver's claimed");
        assertEq(settled, type(uint128).max, "receiver's settled");
    }

    function test_anyone_may_bring_a_signed_claim() public {
        IPaymentChannels.VoucherClaim[] memory all = new IPaymentChannels.VoucherClaim[](2);
        all[0] = rowOf(opened(1, DEPOSIT), 500, 400);
        IPaymentChannels.ChannelConfig memory config = configOf(2);
        config.receiver = stranger;
        deposit(config, DEPOSIT);
        all[1] = rowOf(config, 500, 300);
        bytes memory signature = signed(CLAIM_KEY, channels.getClaimBatchDigest(all));
        vm.prank(stranger);
        channels.claimWithSignature(all, signature);
        assertEq(claimedOf(configOf(1)), 400, "first");
        assertEq(claimedOf(config), 300, "second");
        (uint128 theirs,) = channels.receivers(stranger, address(dollar));
        assertEq(theirs, 300, "another receiver");
    }

    function test_a_signed_claim_holds_for_its_rows_and_authorizer_alone() public {
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(opened(1, DEPOSIT), 500, 400));
        bytes memory signature = signed(CLAIM_KEY, channels.getClaimBatchDigest(all));
        address authorizer = vm.addr(CLAIM_KEY);
        bytes memory why = abi.encodeWithSelector(IPaymentChannels.InvalidAuthorizerSignature.selector, authorizer);
        all[0].totalClaimed = 500;
        vm.expectRevert(why);
        channels.claimWithSignature(all, signature);
        signature = signed(VOUCHER_KEY, channels.getClaimBatchDigest(all));
        vm.expectRevert(why);
        channels.claimWithSignature(all, signature);

        IPaymentChannels.ChannelConfig memory config = configOf(2);
        config.receiverAuthorizer = stranger;
        deposit(config, DEPOSIT);
        IPaymentChannels.VoucherClaim[] memory two = new IPaymentChannels.VoucherClaim[](2);
        two[0] = all[0];
        two[1] = rowOf(config, 500, 500);
        signature = signed(CLAIM_KEY, channels.getClaimBatchDigest(two));
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.AuthorizersDiffer.selector, authorizer, stranger));
        channels.claimWithSignature(two, signature);
    }

    // Refunds

    function test_the_receiver_and_its_authorizer_give_back_what_is_unclaimed() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        claim(config, 300_000);
        uint256 before = dollar.balanceOf(payer);
        vm.prank(receiver);
        channels.refund(config, 100_000);
        vm.prank(config.receiverAuthorizer);
        channels.refund(config, type(uint128).max);
        assertEq(dollar.balanceOf(payer) - before, 700_000, "given back");
        assertEq(balanceOf(config), 300_000, "balance");
        assertEq(channels.refundNonce(channels.getChannelId(config)), 2, "nonce");
    }

    function test_a_refund_is_the_receivers_alone_and_of_something() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        vm.prank(payer);
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.NotReceiver.selector, payer));
        channels.refund(config, 1);
        vm.prank(receiver);
        refused(IPaymentChannels.ZeroAmount.selector);
        channels.refund(config, 0);
    }

    function test_a_refund_of_nothing_unclaimed_uses_its_nonce_up() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, 100);
        claim(config, 100);
        vm.recordLogs();
        vm.prank(receiver);
        channels.refund(config, 1);
        assertEq(vm.getRecordedLogs().length, 0, "events");
        assertEq(channels.refundNonce(channels.getChannelId(config)), 1, "nonce");
    }

    function test_a_channel_that_never_paid_is_closed_by_its_last_refund() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        vm.recordLogs();
        vm.prank(receiver);
        channels.refund(config, DEPOSIT);
        assertEq(vm.getRecordedLogs()[1].topics[0], IPaymentChannels.ChannelClosed.selector, "event");
        assertEq(balanceOf(config), 0, "balance");
    }

    function test_a_signed_refund_holds_once_for_its_channel_and_amount() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        opened(2, DEPOSIT);
        bytes memory signature = signed(CLAIM_KEY, channels.getRefundDigest(channels.getChannelId(config), 0, 400));
        bytes memory why =
            abi.encodeWithSelector(IPaymentChannels.InvalidAuthorizerSignature.selector, config.receiverAuthorizer);
        vm.expectRevert(why);
        channels.refundWithSignature(config, 401, 0, signature);
        vm.expectRevert(why);
        channels.refundWithSignature(configOf(2), 400, 0, signature);
        vm.prank(stranger);
        channels.refundWithSignature(config, 400, 0, signature);
        assertEq(balanceOf(config), DEPOSIT - 400, "balance");
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.WrongRefundNonce.selector, 1, 0));
        channels.refundWithSignature(config, 400, 0, signature);
    }

    function test_a_refund_shrinks_a_withdrawal_and_ends_one_that_it_covers() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        bytes32 id = channels.getChannelId(config);
        vm.prank(payer);
        channels.initiateWithdraw(config, 500);
        vm.prank(receiver);
        channels.refund(config, 200);
        (uint128 amount, uint40 initiatedAt) = channels.pendingWithdrawals(id);
        assertEq(amount, 300, "rest");
        assertEq(initiatedAt, block.timestamp, "since");
        vm.prank(receiver);
        channels.refund(config, 300);
        (amount, initiatedAt) = channels.pendingWithdrawals(id);
        assertEq(amount, 0, "none");
        assertEq(initiatedAt, 0, "not since");
    }

    function test_a_claim_and_a_refund_go_in_one_transaction() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(config, 400, 400));
        bytes[] memory calls = new bytes[](2);
        calls[0] =
            abi.encodeCall(channels.claimWithSignature, (all, signed(CLAIM_KEY, channels.getClaimBatchDigest(all))));
        bytes32 digest = channels.getRefundDigest(channels.getChannelId(config), 0, DEPOSIT);
        calls[1] = abi.encodeCall(channels.refundWithSignature, (config, DEPOSIT, 0, signed(CLAIM_KEY, digest)));
        vm.prank(stranger);
        IMulticall(address(channels)).multicall(calls);
        assertEq(balanceOf(config), 400, "balance");
        assertEq(claimedOf(config), 400, "claimed");
    }

    // Withdrawals

    function test_a_withdrawal_pays_after_its_notice_what_was_not_claimed_meanwhile() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        bytes32 id = channels.getChannelId(config);
        vm.prank(payer);
        channels.initiateWithdraw(config, DEPOSIT);
        claim(config, 300_000);
        vm.warp(block.timestamp + DELAY - 1);
        vm.prank(payer);
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.WithdrawTooEarly.selector, id, block.timestamp + 1));
        channels.finalizeWithdraw(config);
        vm.warp(block.timestamp + 1);
        uint256 before = dollar.balanceOf(payer);
        vm.prank(config.payerAuthorizer);
        channels.finalizeWithdraw(config);
        assertEq(dollar.balanceOf(payer) - before, DEPOSIT - 300_000, "withdrawn");
        assertEq(balanceOf(config), 300_000, "balance");
        channels.settle(receiver, address(dollar));
        assertEq(dollar.balanceOf(receiver), 300_000, "receiver");
        vm.prank(payer);
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.NoWithdrawPending.selector, id));
        channels.finalizeWithdraw(config);
    }

    function test_a_withdrawal_of_what_was_claimed_meanwhile_pays_nothing_and_ends() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, 100);
        vm.prank(payer);
        channels.initiateWithdraw(config, 100);
        claim(config, 100);
        vm.warp(block.timestamp + DELAY);
        uint256 before = dollar.balanceOf(payer);
        vm.prank(payer);
        channels.finalizeWithdraw(config);
        assertEq(dollar.balanceOf(payer), before, "payer");
        (uint128 pending,) = channels.pendingWithdrawals(channels.getChannelId(config));
        assertEq(pending, 0, "pending");
    }

    function test_a_voucher_claims_no_more_than_a_withdrawal_left() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        vm.prank(payer);
        channels.initiateWithdraw(config, DEPOSIT - 100);
        vm.warp(block.timestamp + DELAY);
        vm.prank(payer);
        channels.finalizeWithdraw(config);
        claimRefused(
            rowOf(config, 101, 101),
            abi.encodeWithSelector(
                IPaymentChannels.ClaimExceedsBalance.selector, channels.getChannelId(config), 101, 100
            )
        );
        claim(config, 100);
    }

    function test_a_withdrawal_is_the_payers_alone_of_something_unclaimed_and_one_at_a_time() public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        bytes32 id = channels.getChannelId(config);
        bytes memory why = abi.encodeWithSelector(IPaymentChannels.NotPayer.selector, receiver);
        vm.prank(receiver);
        vm.expectRevert(why);
        channels.initiateWithdraw(config, 1);
        vm.prank(receiver);
        vm.expectRevert(why);
        channels.finalizeWithdraw(config);
        vm.prank(payer);
        refused(IPaymentChannels.ZeroAmount.selector);
        channels.initiateWithdraw(config, 0);
        claim(config, 400);
        vm.prank(payer);
        vm.expectRevert(
            abi.encodeWithSelector(IPaymentChannels.WithdrawExceedsUnclaimed.selector, id, DEPOSIT - 399, DEPOSIT - 400)
        );
        channels.initiateWithdraw(config, DEPOSIT - 399);
        vm.prank(config.payerAuthorizer);
        channels.initiateWithdraw(config, DEPOSIT - 400);
        vm.prank(payer);
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.WithdrawPending.selector, id));
        channels.initiateWithdraw(config, 1);
    }

    // Hostile tokens

    function test_a_token_cannot_call_back_into_what_moves_tokens() public {
        CallingToken token = new CallingToken();
        Donor donor = new Donor();
        donor.bring(DEPOSIT);
        IPaymentChannels.ChannelConfig memory config = configOf(1);
        config.token = address(token);
        config.receiver = address(token);
        config.receiverAuthorizer = address(token);
        config.payer = address(token);
        bytes[4] memory calls = [
            abi.encodeCall(channels.settle, (address(token), address(token))),
            abi.encodeCall(channels.refund, (config, 10)),
            abi.encodeCall(channels.finalizeWithdraw, (config)),
            abi.encodeCall(channels.deposit, (config, DEPOSIT, address(donor), ""))
        ];
        channels.deposit(config, DEPOSIT, address(donor), "");
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(config, 500, 500));
        vm.prank(address(token));
        channels.claim(all);
        for (uint256 i; i < calls.length; ++i) {
            token.callDuringTransfers(address(channels), calls[i]);
            vm.prank(address(token));
            channels.refund(config, 10);
            assertTrue(!token.succeeded(), "called back");
            assertEq(
                keccak256(token.failure()),
                keccak256(abi.encodeWithSelector(IGuardErrors.ReentrancyGuardReentrantCall.selector)),
                "why"
            );
        }
        assertEq(balanceOf(config), DEPOSIT - 40, "balance");
    }

    // Any amounts

    function testFuzz_what_comes_in_goes_out_to_payer_and_receiver(
        uint128 first,
        uint128 second,
        uint128 voucher,
        uint128 total,
        uint128 back
    ) public {
        first = uint128(bounded(first, 1, 1e8));
        second = uint128(bounded(second, 1, 1e8));
        total = uint128(bounded(total, 1, first + second));
        voucher = uint128(bounded(voucher, total, type(uint128).max));
        back = uint128(bounded(back, 1, type(uint128).max));
        IPaymentChannels.ChannelConfig memory config = opened(1, first);
        deposit(config, second);
        IPaymentChannels.VoucherClaim[] memory all = rows(rowOf(config, voucher, total));
        vm.prank(receiver);
        channels.claim(all);
        vm.prank(receiver);
        channels.refund(config, back);
        channels.settle(receiver, address(dollar));
        uint256 unclaimed = first + second - total;
        uint256 given = back < unclaimed ? back : unclaimed;
        assertEq(dollar.balanceOf(receiver), total, "receiver");
        assertEq(dollar.balanceOf(payer), 1_000_000_000 - (first + second) + given, "payer");
        assertEq(dollar.balanceOf(address(channels)), unclaimed - given, "left");
    }

    function testFuzz_the_id_is_the_digest_of_the_config(IPaymentChannels.ChannelConfig memory config) public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("x402 Batch Settlement"),
                keccak256("1"),
                block.chainid,
                address(channels)
            )
        );
        bytes32 hash = keccak256(
            abi.encode(
                keccak256(
                    "ChannelConfig(address payer,address payerAuthorizer,address receiver,"
                    "address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
                ),
                config
            )
        );
        assertEq(channels.getChannelId(config), keccak256(abi.encodePacked(bytes2(0x1901), domain, hash)), "id");
    }

    function testFuzz_no_other_signature_claims(bytes memory signature, uint128 most) public {
        IPaymentChannels.ChannelConfig memory config = opened(1, DEPOSIT);
        most = uint128(bounded(most, 1, DEPOSIT));
        bytes32 digest = channels.getVoucherDigest(channels.getChannelId(config), most);
        vm.assume(keccak256(signature) != keccak256(signed(VOUCHER_KEY, digest)));
        claimRefused(
            IPaymentChannels.VoucherClaim(IPaymentChannels.Voucher(config, most), signature, most), invalid(config)
        );
    }
}
