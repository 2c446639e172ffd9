// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IBonds} from "../src/IBonds.sol";
import {BondsTest} from "./support/BondsTest.sol";

/// @notice Bonds, asks back and slashes in any order, often against the rules, and remembers what left and when.
contract BondsActor is BondsTest {
    uint256 internal constant EVIDENCES = 6;

    mapping(bytes32 => uint256) public decided;
    mapping(bytes32 => uint256) public proposedAt;
    uint256 public putIn;
    uint256 public takenBack;
    uint256 public slashed;
    bool public early;

    constructor() {
        setUp();
    }

    function evidenceOf(uint256 evidence) internal pure returns (bytes32) {
        return bytes32(1 + evidence % EVIDENCES);
    }

    function attempt(bytes memory call_) internal returns (bool done) {
        (done,) = address(bonds).call(call_);
    }

    function wait(uint256 time) external {
        vm.warp(block.timestamp + bounded(time, 0, 12 days));
    }

    function lock(uint128 amount) external {
        amount = uint128(bounded(amount, 1, 300));
        putIn += amount;
        bonded(1, amount);
    }

    function request(uint128 amount) external {
        bytes memory call_ = abi.encodeCall(bonds.requestUnlock, (termsOf(1), uint128(bounded(amount, 0, 800))));
        vm.prank(seller);
        attempt(call_);
    }

    function cancel() external {
        bytes memory call_ = abi.encodeCall(bonds.cancelUnlock, (termsOf(1)));
        vm.prank(seller);
        attempt(call_);
    }

    function take() external {
        IBonds.Terms memory terms = termsOf(1);
        (uint128 stake, uint128 reserved, uint128 unlocking, uint40 unlocksAt) = moneyOf(terms);
        uint256 before = dollar.balanceOf(seller);
        bytes memory call_ = abi.encodeCall(bonds.unlock, (terms));
        vm.prank(seller);
        bool done = attempt(call_);
        uint256 amount = dollar.balanceOf(seller) - before;
        takenBack += amount;
        if (amount > unlocking || amount > stake - reserved || (done && block.timestamp < unlocksAt)) early = true;
    }

    function proposeSome(uint256 evidence, uint128 damage, uint128 amount) external {
        IBonds.Terms memory terms = termsOf(1);
        bytes32 which = evidenceOf(evidence);
        bool used = statusOf(terms, which) != IBonds.Status.None;
        IBonds.Judgement memory judgement =
            judgementOf(which, uint128(bounded(damage, 1, 600)), uint128(bounded(amount, 1, 600)));
        bytes32 digest = bonds.getSlashDigest(bonds.getBondId(terms), judgement);
        bytes memory call_ = abi.encodeCall(bonds.proposeSlash, (terms, judgement, by(0, 2, digest)));
        bool done = attempt(call_);
        assertTrue(!(done && used), "evidence counts once");
        if (done) proposedAt[which] = block.timestamp;
    }

    function answerSome(uint256 evidence) external {
        bytes memory call_ = abi.encodeCall(bonds.answerSlash, (termsOf(1), evidenceOf(evidence), "no"));
        vm.prank(seller);
        attempt(call_);
    }

    function decide(uint256 evidence, uint256 how) external {
        IBonds.Terms memory terms = termsOf(1);
        bytes32 which = evidenceOf(evidence);
        bytes32 id = bonds.getBondId(terms);
        (uint128 stake,,,) = moneyOf(terms);
        bytes memory call_;
        how = how % 4;
        if (how == 0) call_ = abi.encodeCall(bonds.executeSlash, (terms, which));
        if (how == 1) call_ = abi.encodeCall(bonds.lapseSlash, (terms, which));
        if (how == 2) {
            bytes32 digest = bonds.getUpholdDigest(id, which, "no");
            call_ = abi.encodeCall(bonds.upholdSlash, (terms, which, by(0, 1, digest)));
        }
        if (how == 3) {
            bytes32 digest = bonds.getDismissDigest(id, which);
            call_ = abi.encodeCall(bonds.dismissSlash, (terms, which, by(0, 1, digest)));
        }
        if (!attempt(call_)) return;
        ++decided[which];
        (uint128 left,,,) = moneyOf(terms);
        slashed += stake - left;
        if (left != stake && block.timestamp < proposedAt[which] + NOTICE) early = true;
    }

    function pay() external {
        attempt(abi.encodeCall(bonds.payOut, (buyer, address(dollar))));
        attempt(abi.encodeCall(bonds.payOut, (sink, address(dollar))));
    }

    // What has to hold

    function checkSolvent() external view {
        (uint128 stake, uint128 reserved, uint128 unlocking, uint40 unlocksAt) = moneyOf(termsOf(1));
        uint256 credit = bonds.credits(buyer, address(dollar)) + bonds.credits(sink, address(dollar));
        assertEq(dollar.balanceOf(address(bonds)), stake + credit, "holds what it owes");
        assertEq(stake + slashed + takenBack, putIn, "all of it is somewhere");
        assertEq(credit + dollar.balanceOf(buyer) + dollar.balanceOf(sink), slashed, "slashes go to buyer and sink");
        assertAtMost(reserved, stake, "reserved of the stake");
        assertAtMost(unlocking, stake, "asked for of the stake");
        assertTrue((unlocking == 0) == (unlocksAt == 0), "a request has a time");
    }

    function checkReserved() external view {
        IBonds.Terms memory terms = termsOf(1);
        (, uint128 reserved,,) = moneyOf(terms);
        uint256 sum;
        for (uint256 i; i < EVIDENCES; ++i) {
            (IBonds.Status status,,, uint128 amount,,) = bonds.slashes(bonds.getBondId(terms), evidenceOf(i));
            if (status == IBonds.Status.Proposed) sum += amount;
            assertAtMost(decided[evidenceOf(i)], 1, "decisions over one piece of evidence");
        }
        assertEq(reserved, sum, "reserved is what the open proposals ask");
    }

    function checkNotice() external view {
        assertTrue(!early, "nothing leaves before its notice, by whatever way");
    }
}

contract BondsInvariantTest {
    BondsActor internal actor;

    function setUp() external {
        actor = new BondsActor();
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
        all[0].selectors = new bytes4[](9);
        all[0].selectors[0] = actor.wait.selector;
        all[0].selectors[1] = actor.lock.selector;
        all[0].selectors[2] = actor.request.selector;
        all[0].selectors[3] = actor.cancel.selector;
        all[0].selectors[4] = actor.take.selector;
        all[0].selectors[5] = actor.proposeSome.selector;
        all[0].selectors[6] = actor.answerSome.selector;
        all[0].selectors[7] = actor.decide.selector;
        all[0].selectors[8] = actor.pay.selector;
    }

    /// The contract holds what it owes; no more is slashed than there is, and once for each piece of evidence; nothing
    /// leaves before its notice.
    function invariant_money_is_where_it_belongs() external view {
        actor.checkSolvent();
        actor.checkReserved();
        actor.checkNotice();
    }
}
