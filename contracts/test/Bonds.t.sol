// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IBonds} from "../src/IBonds.sol";
import {BondsTest} from "./support/BondsTest.sol";
import {CallingToken, FalseToken, TaxedToken} from "./support/Tokens.sol";
import {Wallet} from "./support/Wallets.sol";

contract BondsUnitTest is BondsTest {
    uint128 internal constant STAKE = 1_000_000;
    bytes32 internal constant EVIDENCE = keccak256("evidence");
    bytes32 internal constant ANSWER = keccak256("answer");

    // Bonding

    function test_a_stake_is_locked_and_raised() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bonded(1, 5);
        (uint128 stake, uint128 reserved, uint128 unlocking, uint40 unlocksAt) = moneyOf(terms);
        assertEq(stake, STAKE + 5, "stake");
        assertEq(uint256(reserved) + unlocking + unlocksAt, 0, "nothing else");
        assertEq(dollar.balanceOf(address(bonds)), STAKE + 5, "held");
    }

    function bondRefused(IBonds.Terms memory terms, bytes memory why) internal {
        vm.prank(terms.seller);
        vm.expectRevert(why);
        bonds.bond(terms, STAKE);
    }

    function test_only_the_seller_bonds_and_something() public {
        vm.prank(stranger);
        vm.expectRevert(abi.encodeWithSelector(IBonds.NotSeller.selector, stranger));
        bonds.bond(termsOf(1), STAKE);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.ZeroAmount.selector));
        bonds.bond(termsOf(1), 0);
        IBonds.Terms memory terms = termsOf(1);
        terms.seller = address(0);
        bondRefused(terms, abi.encodeWithSelector(IBonds.ZeroAddress.selector));
    }

    function test_a_token_has_code() public {
        IBonds.Terms memory terms = termsOf(1);
        terms.token = stranger;
        bondRefused(terms, abi.encodeWithSelector(IBonds.NotAToken.selector, stranger));
    }

    function test_the_seller_is_neither_sink_nor_arbiter() public {
        bytes memory why = abi.encodeWithSelector(IBonds.SellerOnBothSides.selector, seller);
        IBonds.Terms memory terms = termsOf(1);
        terms.sink = seller;
        bondRefused(terms, why);
        terms = termsOf(1);
        terms.arbiters = new address[](1);
        terms.arbiters[0] = seller;
        terms.quorum = 1;
        bondRefused(terms, why);
    }

    function test_periods_have_bounds_and_a_slash_waits_as_long_as_the_notice() public {
        IBonds.Terms memory terms = termsOf(1);
        terms.noticePeriod = 1 days - 1;
        bondRefused(terms, abi.encodeWithSelector(IBonds.NoticeOutOfRange.selector, terms.noticePeriod));
        terms.noticePeriod = 90 days + 1;
        bondRefused(terms, abi.encodeWithSelector(IBonds.NoticeOutOfRange.selector, terms.noticePeriod));
        terms = termsOf(1);
        terms.challengePeriod = NOTICE - 1;
        bondRefused(terms, abi.encodeWithSelector(IBonds.ChallengeOutOfRange.selector, terms.challengePeriod));
        terms.challengePeriod = 90 days + 1;
        bondRefused(terms, abi.encodeWithSelector(IBonds.ChallengeOutOfRange.selector, terms.challengePeriod));
    }

    function test_arbiters_are_few_different_and_a_quorum_is_most_of_them() public {
        IBonds.Terms memory terms = termsOf(1);
        terms.arbiters = new address[](0);
        bondRefused(terms, abi.encodeWithSelector(IBonds.ArbitersOutOfRange.selector, 0));
        terms.arbiters = new address[](17);
        bondRefused(terms, abi.encodeWithSelector(IBonds.ArbitersOutOfRange.selector, 17));
        terms = termsOf(1);
        terms.arbiters[2] = terms.arbiters[1];
        bondRefused(terms, abi.encodeWithSelector(IBonds.ArbitersNotAscending.selector, terms.arbiters[1]));
        terms = termsOf(1);
        terms.arbiters[0] = address(0);
        bondRefused(terms, abi.encodeWithSelector(IBonds.ArbitersNotAscending.selector, address(0)));
        uint8[3] memory wrong = [0, 1, 4];
        for (uint256 i; i < wrong.length; ++i) {
            terms = termsOf(1);
            terms.quorum = wrong[i];
            bondRefused(terms, abi.encodeWithSelector(IBonds.QuorumOutOfRange.selector, wrong[i]));
        }
    }

    function test_tokens_that_charge_or_say_false_are_refused() public {
        IBonds.Terms memory terms = termsOf(1);
        TaxedToken taxed = new TaxedToken();
        taxed.mint(seller, STAKE);
        vm.prank(seller);
        taxed.approve(address(bonds), STAKE);
        terms.token = address(taxed);
        bondRefused(terms, abi.encodeWithSelector(IBonds.WrongStake.selector, STAKE, STAKE - STAKE / 100));
        FalseToken token = new FalseToken();
        token.refuse();
        terms.token = address(token);
        vm.prank(seller);
        vm.expectRevert();
        bonds.bond(terms, STAKE);
    }

    // Unlocking

    function test_a_stake_is_paid_back_after_its_notice() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bytes32 id = bonds.getBondId(terms);
        vm.prank(seller);
        bonds.requestUnlock(terms, 400_000);
        vm.warp(block.timestamp + NOTICE - 1);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.UnlockTooEarly.selector, id, uint40(block.timestamp + 1)));
        bonds.unlock(terms);
        vm.warp(block.timestamp + 1);
        vm.prank(seller);
        bonds.unlock(terms);
        (uint128 stake,, uint128 unlocking, uint40 unlocksAt) = moneyOf(terms);
        assertEq(stake, STAKE - 400_000, "stake");
        assertEq(uint256(unlocking) + unlocksAt, 0, "no request");
        assertEq(dollar.balanceOf(seller), 1_000_000_000 - STAKE + 400_000, "seller");
    }

    function test_a_request_is_the_sellers_alone_within_the_stake_and_one_at_a_time() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bytes32 id = bonds.getBondId(terms);
        bytes memory why = abi.encodeWithSelector(IBonds.NotSeller.selector, stranger);
        vm.prank(stranger);
        vm.expectRevert(why);
        bonds.requestUnlock(terms, 1);
        vm.prank(stranger);
        vm.expectRevert(why);
        bonds.cancelUnlock(terms);
        vm.prank(stranger);
        vm.expectRevert(why);
        bonds.unlock(terms);
        why = abi.encodeWithSelector(IBonds.NoUnlockPending.selector, id);
        vm.prank(seller);
        vm.expectRevert(why);
        bonds.cancelUnlock(terms);
        vm.prank(seller);
        vm.expectRevert(why);
        bonds.unlock(terms);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.ZeroAmount.selector));
        bonds.requestUnlock(terms, 0);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.UnlockExceedsStake.selector, STAKE + 1, STAKE));
        bonds.requestUnlock(terms, STAKE + 1);
        vm.prank(seller);
        bonds.requestUnlock(terms, 1);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.UnlockPending.selector, id));
        bonds.requestUnlock(terms, 1);
        vm.prank(seller);
        bonds.cancelUnlock(terms);
        vm.prank(seller);
        bonds.requestUnlock(terms, STAKE);
        (,,, uint40 unlocksAt) = moneyOf(terms);
        assertEq(unlocksAt, block.timestamp + NOTICE, "a new notice");
    }

    // Slashing

    function test_a_slash_pays_the_damage_to_the_buyer_and_the_rest_to_the_sink() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        propose(terms, judgementOf(EVIDENCE, 300, 500));
        (uint128 stake, uint128 reserved,,) = moneyOf(terms);
        assertEq(stake, STAKE, "before");
        assertEq(reserved, 500, "reserved");
        vm.warp(block.timestamp + CHALLENGE);
        vm.prank(stranger);
        bonds.executeSlash(terms, EVIDENCE);
        (stake, reserved,,) = moneyOf(terms);
        assertEq(stake, STAKE - 500, "after");
        assertEq(reserved, 0, "free");
        bonds.payOut(buyer, address(dollar));
        bonds.payOut(sink, address(dollar));
        assertEq(dollar.balanceOf(buyer), 300, "buyer");
        assertEq(dollar.balanceOf(sink), 200, "sink");
        vm.expectRevert(abi.encodeWithSelector(IBonds.ZeroAmount.selector));
        bonds.payOut(buyer, address(dollar));
    }

    function test_without_a_sink_the_rest_is_burned() public {
        IBonds.Terms memory terms = termsOf(1);
        terms.sink = address(0);
        vm.prank(seller);
        bonds.bond(terms, STAKE);
        propose(terms, judgementOf(EVIDENCE, 300, 500));
        vm.warp(block.timestamp + CHALLENGE);
        bonds.executeSlash(terms, EVIDENCE);
        address burned = 0x000000000000000000000000000000000000dEaD;
        bonds.payOut(burned, address(dollar));
        assertEq(dollar.balanceOf(burned), 200, "burned");
    }

    function test_the_buyer_gets_no_more_than_the_slash() public {
        IBonds.Terms memory terms = bonded(1, 100);
        propose(terms, judgementOf(EVIDENCE, 5000, 5000));
        vm.warp(block.timestamp + CHALLENGE);
        bonds.executeSlash(terms, EVIDENCE);
        assertEq(bonds.credits(buyer, address(dollar)), 100, "buyer");
        assertEq(bonds.credits(sink, address(dollar)), 0, "sink");
        (uint128 stake,,,) = moneyOf(terms);
        assertEq(stake, 0, "stake");
    }

    function test_no_more_than_the_stake_is_reserved_by_all_proposals_together() public {
        IBonds.Terms memory terms = bonded(1, 100);
        propose(terms, judgementOf(EVIDENCE, 70, 70));
        propose(terms, judgementOf(keccak256("second"), 70, 70));
        (, uint128 reserved,,) = moneyOf(terms);
        assertEq(reserved, 100, "reserved");
        IBonds.Judgement memory third = judgementOf(keccak256("third"), 1, 1);
        bytes32 id = bonds.getBondId(terms);
        IBonds.ArbiterSignature[] memory two = by(0, 1, bonds.getSlashDigest(id, third));
        vm.expectRevert(abi.encodeWithSelector(IBonds.NothingFree.selector, id));
        bonds.proposeSlash(terms, third, two);
        vm.warp(block.timestamp + CHALLENGE);
        bonds.executeSlash(terms, EVIDENCE);
        bonds.executeSlash(terms, keccak256("second"));
        assertEq(bonds.credits(buyer, address(dollar)), 100, "buyer");
    }

    function proposalRefused(
        IBonds.Terms memory terms,
        IBonds.Judgement memory judgement,
        IBonds.ArbiterSignature[] memory signatures,
        bytes memory why
    ) internal {
        vm.expectRevert(why);
        bonds.proposeSlash(terms, judgement, signatures);
    }

    function test_evidence_counts_once_however_it_ended() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        IBonds.Judgement memory judgement = judgementOf(EVIDENCE, 5, 5);
        bytes32 id = bonds.getBondId(terms);
        judgement.deadline += 100 days;
        IBonds.ArbiterSignature[] memory two = by(0, 1, bonds.getSlashDigest(id, judgement));
        bytes memory used = abi.encodeWithSelector(IBonds.EvidenceUsed.selector, id, EVIDENCE);
        bonds.proposeSlash(terms, judgement, two);
        proposalRefused(terms, judgement, two, used);
        vm.warp(block.timestamp + CHALLENGE);
        bonds.executeSlash(terms, EVIDENCE);
        proposalRefused(terms, judgement, two, used);
        vm.expectRevert(abi.encodeWithSelector(IBonds.NotProposed.selector, id, EVIDENCE));
        bonds.executeSlash(terms, EVIDENCE);

        propose(terms, judgementOf(keccak256("dismissed"), 5, 5));
        dismiss(terms, keccak256("dismissed"));
        judgement = judgementOf(keccak256("dismissed"), 5, 5);
        two = by(0, 1, bonds.getSlashDigest(id, judgement));
        used = abi.encodeWithSelector(IBonds.EvidenceUsed.selector, id, keccak256("dismissed"));
        proposalRefused(terms, judgement, two, used);
    }

    function test_a_judgement_names_evidence_buyer_damage_and_amount() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        IBonds.ArbiterSignature[] memory none = new IBonds.ArbiterSignature[](0);
        bytes memory why = abi.encodeWithSelector(IBonds.EmptyJudgement.selector);
        proposalRefused(terms, judgementOf(0, 5, 5), none, why);
        proposalRefused(terms, judgementOf(EVIDENCE, 0, 5), none, why);
        IBonds.Judgement memory judgement = judgementOf(EVIDENCE, 5, 5);
        judgement.buyer = address(0);
        proposalRefused(terms, judgement, none, why);
        judgement.buyer = seller;
        proposalRefused(terms, judgement, none, abi.encodeWithSelector(IBonds.SellerOnBothSides.selector, seller));
        proposalRefused(terms, judgementOf(EVIDENCE, 5, 0), none, abi.encodeWithSelector(IBonds.ZeroAmount.selector));
        judgement = judgementOf(EVIDENCE, 5, 5);
        vm.warp(block.timestamp + 1 days + 1);
        proposalRefused(
            terms, judgement, none, abi.encodeWithSelector(IBonds.JudgementExpired.selector, judgement.deadline)
        );
    }

    function test_it_takes_a_quorum_of_different_arbiters_over_this_very_judgement() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bytes32 id = bonds.getBondId(terms);
        IBonds.Judgement memory judgement = judgementOf(EVIDENCE, 5, 5);
        bytes32 digest = bonds.getSlashDigest(id, judgement);
        IBonds.ArbiterSignature[] memory two = by(0, 1, digest);

        IBonds.ArbiterSignature[] memory other = new IBonds.ArbiterSignature[](1);
        other[0] = two[0];
        proposalRefused(terms, judgement, other, abi.encodeWithSelector(IBonds.NoQuorum.selector, 1, 2));
        other = new IBonds.ArbiterSignature[](4);
        proposalRefused(terms, judgement, other, abi.encodeWithSelector(IBonds.NoQuorum.selector, 4, 2));
        other = by(1, 1, digest);
        proposalRefused(terms, judgement, other, abi.encodeWithSelector(IBonds.WrongArbiter.selector, 1));
        other = by(1, 0, digest);
        proposalRefused(terms, judgement, other, abi.encodeWithSelector(IBonds.WrongArbiter.selector, 0));
        other = by(0, 1, digest);
        other[1].arbiter = 3;
        proposalRefused(terms, judgement, other, abi.encodeWithSelector(IBonds.WrongArbiter.selector, 3));
        other = by(0, 1, digest);
        other[1].arbiter = 2;
        proposalRefused(
            terms, judgement, other, abi.encodeWithSelector(IBonds.InvalidArbiterSignature.selector, terms.arbiters[2])
        );

        bytes memory why = abi.encodeWithSelector(IBonds.InvalidArbiterSignature.selector, terms.arbiters[0]);
        judgement.amount = 6;
        proposalRefused(terms, judgement, two, why);
        judgement.amount = 5;
        judgement.damage = 4;
        proposalRefused(terms, judgement, two, why);
        judgement.damage = 5;
        judgement.buyer = stranger;
        proposalRefused(terms, judgement, two, why);
        judgement.buyer = buyer;
        judgement.evidence = keccak256("other");
        proposalRefused(terms, judgement, two, why);
        judgement.evidence = EVIDENCE;
        proposalRefused(bonded(2, STAKE), judgement, two, why);
        vm.chainId(block.chainid + 1);
        proposalRefused(terms, judgement, two, why);
    }

    function test_an_arbiter_may_be_a_contract() public {
        IBonds.Terms memory terms = termsOf(1);
        terms.arbiters = new address[](1);
        terms.arbiters[0] = address(new Wallet("agreed"));
        terms.quorum = 1;
        vm.prank(seller);
        bonds.bond(terms, STAKE);
        IBonds.ArbiterSignature[] memory one = new IBonds.ArbiterSignature[](1);
        one[0] = IBonds.ArbiterSignature(0, "agreed");
        bonds.proposeSlash(terms, judgementOf(EVIDENCE, 5, 5), one);
        assertTrue(statusOf(terms, EVIDENCE) == IBonds.Status.Proposed, "proposed");
    }

    // Answers

    function test_an_answered_slash_needs_the_arbiters_a_second_time() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bytes32 id = bonds.getBondId(terms);
        propose(terms, judgementOf(EVIDENCE, 5, 5));
        vm.prank(seller);
        bonds.answerSlash(terms, EVIDENCE, ANSWER);
        uint40 challengeEnds = uint40(block.timestamp) + CHALLENGE;
        IBonds.ArbiterSignature[] memory two = by(0, 1, bonds.getUpholdDigest(id, EVIDENCE, ANSWER));
        vm.expectRevert(abi.encodeWithSelector(IBonds.ChallengeRuns.selector, challengeEnds));
        bonds.upholdSlash(terms, EVIDENCE, two);
        vm.warp(challengeEnds);
        vm.expectRevert(abi.encodeWithSelector(IBonds.Answered.selector, ANSWER));
        bonds.executeSlash(terms, EVIDENCE);
        IBonds.ArbiterSignature[] memory other = by(0, 1, bonds.getUpholdDigest(id, EVIDENCE, keccak256("other")));
        vm.expectRevert(abi.encodeWithSelector(IBonds.InvalidArbiterSignature.selector, terms.arbiters[0]));
        bonds.upholdSlash(terms, EVIDENCE, other);
        bonds.upholdSlash(terms, EVIDENCE, two);
        assertEq(bonds.credits(buyer, address(dollar)), 5, "buyer");
        assertTrue(statusOf(terms, EVIDENCE) == IBonds.Status.Executed, "executed");
    }

    function test_an_answer_is_the_sellers_in_time_and_says_something() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bytes32 id = bonds.getBondId(terms);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.NotProposed.selector, id, EVIDENCE));
        bonds.answerSlash(terms, EVIDENCE, ANSWER);
        propose(terms, judgementOf(EVIDENCE, 5, 5));
        vm.prank(stranger);
        vm.expectRevert(abi.encodeWithSelector(IBonds.NotSeller.selector, stranger));
        bonds.answerSlash(terms, EVIDENCE, ANSWER);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.EmptyAnswer.selector));
        bonds.answerSlash(terms, EVIDENCE, 0);
        uint40 challengeEnds = uint40(block.timestamp) + CHALLENGE;
        vm.warp(challengeEnds - 1);
        vm.expectRevert(abi.encodeWithSelector(IBonds.ChallengeRuns.selector, challengeEnds));
        bonds.executeSlash(terms, EVIDENCE);
        vm.warp(challengeEnds);
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.TooLate.selector, challengeEnds));
        bonds.answerSlash(terms, EVIDENCE, ANSWER);
        vm.expectRevert(abi.encodeWithSelector(IBonds.NotAnswered.selector));
        bonds.lapseSlash(terms, EVIDENCE);
        IBonds.ArbiterSignature[] memory two = by(0, 1, bonds.getUpholdDigest(id, EVIDENCE, 0));
        vm.expectRevert(abi.encodeWithSelector(IBonds.NotAnswered.selector));
        bonds.upholdSlash(terms, EVIDENCE, two);
    }

    function test_an_answered_slash_that_nobody_upholds_lapses() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bytes32 id = bonds.getBondId(terms);
        propose(terms, judgementOf(EVIDENCE, 5, 5));
        vm.prank(seller);
        bonds.answerSlash(terms, EVIDENCE, ANSWER);
        uint40 end = uint40(block.timestamp) + 2 * CHALLENGE;
        vm.warp(end - 1);
        vm.expectRevert(abi.encodeWithSelector(IBonds.ChallengeRuns.selector, end));
        bonds.lapseSlash(terms, EVIDENCE);
        vm.warp(end);
        IBonds.ArbiterSignature[] memory two = by(0, 1, bonds.getUpholdDigest(id, EVIDENCE, ANSWER));
        vm.expectRevert(abi.encodeWithSelector(IBonds.TooLate.selector, end));
        bonds.upholdSlash(terms, EVIDENCE, two);
        vm.prank(stranger);
        bonds.lapseSlash(terms, EVIDENCE);
        (uint128 stake, uint128 reserved,,) = moneyOf(terms);
        assertEq(stake, STAKE, "stake");
        assertEq(reserved, 0, "reserved");
        assertTrue(statusOf(terms, EVIDENCE) == IBonds.Status.Lapsed, "lapsed");
    }

    function test_arbiters_may_drop_a_proposal() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        propose(terms, judgementOf(EVIDENCE, 5, 5));
        dismiss(terms, EVIDENCE);
        (uint128 stake, uint128 reserved,,) = moneyOf(terms);
        assertEq(stake, STAKE, "stake");
        assertEq(reserved, 0, "reserved");
        assertTrue(statusOf(terms, EVIDENCE) == IBonds.Status.Dismissed, "dismissed");
    }

    // Notice against slash

    function test_a_stake_under_notice_can_be_slashed_and_what_is_reserved_cannot_leave() public {
        IBonds.Terms memory terms = bonded(1, STAKE);
        bytes32 id = bonds.getBondId(terms);
        vm.prank(seller);
        bonds.requestUnlock(terms, STAKE);
        vm.warp(block.timestamp + NOTICE);
        propose(terms, judgementOf(EVIDENCE, 300_000, 300_000));
        vm.prank(seller);
        bonds.unlock(terms);
        (uint128 stake, uint128 reserved, uint128 unlocking,) = moneyOf(terms);
        assertEq(stake, 300_000, "stake");
        assertEq(reserved, 300_000, "reserved");
        assertEq(unlocking, 300_000, "still asked for");
        vm.prank(seller);
        vm.expectRevert(abi.encodeWithSelector(IBonds.NothingFree.selector, id));
        bonds.unlock(terms);
        vm.warp(block.timestamp + CHALLENGE);
        bonds.executeSlash(terms, EVIDENCE);
        (stake, reserved, unlocking,) = moneyOf(terms);
        assertEq(uint256(stake) + reserved + unlocking, 0, "nothing left");
        assertEq(bonds.credits(buyer, address(dollar)), 300_000, "buyer");
    }

    /// Whatever helpers a seller has among arbiters and buyers, a slash brings it nothing sooner than its notice would.
    function testFuzz_a_slash_of_ones_own_is_no_way_around_the_notice(uint40 notice, uint40 challenge, uint40 wait)
        public
    {
        IBonds.Terms memory terms = termsOf(1);
        terms.noticePeriod = uint40(bounded(notice, 1 days, 90 days));
        terms.challengePeriod = uint40(bounded(challenge, terms.noticePeriod, 90 days));
        vm.prank(seller);
        bonds.bond(terms, STAKE);
        propose(terms, judgementOf(EVIDENCE, STAKE, STAKE));
        bytes32 digest = bonds.getUpholdDigest(bonds.getBondId(terms), EVIDENCE, 0);
        IBonds.ArbiterSignature[] memory two = by(0, 1, digest);
        vm.warp(block.timestamp + bounded(wait, 0, terms.noticePeriod - 1));
        vm.expectRevert();
        bonds.executeSlash(terms, EVIDENCE);
        vm.expectRevert();
        bonds.upholdSlash(terms, EVIDENCE, two);
        assertEq(bonds.credits(buyer, address(dollar)), 0, "buyer");
    }

    function testFuzz_a_slash_takes_what_it_says_or_what_there_is(uint128 stake, uint128 damage, uint128 amount)
        public
    {
        stake = uint128(bounded(stake, 1, 1e9));
        damage = uint128(bounded(damage, 1, type(uint128).max));
        amount = uint128(bounded(amount, 1, type(uint128).max));
        IBonds.Terms memory terms = bonded(1, stake);
        propose(terms, judgementOf(EVIDENCE, damage, amount));
        vm.warp(block.timestamp + CHALLENGE);
        bonds.executeSlash(terms, EVIDENCE);
        uint256 taken = amount < stake ? amount : stake;
        uint256 toBuyer = damage < taken ? damage : taken;
        (uint128 left,,,) = moneyOf(terms);
        assertEq(left, stake - taken, "left");
        assertEq(bonds.credits(buyer, address(dollar)), toBuyer, "buyer");
        assertEq(bonds.credits(sink, address(dollar)), taken - toBuyer, "sink");
    }

    function test_a_token_cannot_call_back_into_what_moves_tokens() public {
        CallingToken token = new CallingToken();
        token.mint(address(token), STAKE);
        IBonds.Terms memory terms = termsOf(1);
        terms.seller = address(token);
        terms.token = address(token);
        vm.prank(address(token));
        token.approve(address(bonds), STAKE);
        vm.prank(address(token));
        bonds.bond(terms, STAKE / 2);
        vm.prank(address(token));
        bonds.requestUnlock(terms, STAKE / 2);
        vm.warp(block.timestamp + NOTICE);
        token.callDuringTransfers(address(bonds), abi.encodeCall(bonds.bond, (terms, 1)));
        vm.prank(address(token));
        bonds.unlock(terms);
        assertTrue(!token.succeeded(), "called back");
        (uint128 stake,,,) = moneyOf(terms);
        assertEq(stake, 0, "stake");
    }
}
