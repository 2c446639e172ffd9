// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IBonds} from "../../src/IBonds.sol";
import {Dollar} from "./Tokens.sol";
import {Test} from "./Test.sol";

/// @notice Bonds of one seller in dollars, with three arbiters of whom two have to agree.
abstract contract BondsTest is Test {
    uint40 internal constant NOTICE = 7 days;
    uint40 internal constant CHALLENGE = 10 days;

    IBonds internal bonds;
    Dollar internal dollar;
    address internal seller;
    address internal buyer;
    address internal sink;
    address internal stranger;
    uint256[] internal keys;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        bonds = IBonds(deployed("Bonds", ""));
        dollar = new Dollar();
        seller = vm.addr(0x5E11E4);
        buyer = vm.addr(0xB4E4);
        sink = vm.addr(0x514C);
        stranger = vm.addr(0x5742A6);
        keys = [uint256(0xA1), 0xA2, 0xA3];
        for (uint256 i; i < 3; ++i) {
            for (uint256 j; j + 1 < 3; ++j) {
                if (vm.addr(keys[j]) > vm.addr(keys[j + 1])) (keys[j], keys[j + 1]) = (keys[j + 1], keys[j]);
            }
        }
        dollar.mint(seller, 1_000_000_000);
        vm.prank(seller);
        dollar.approve(address(bonds), type(uint256).max);
    }

    function termsOf(uint256 salt) internal view returns (IBonds.Terms memory terms) {
        terms.seller = seller;
        terms.token = address(dollar);
        terms.sink = sink;
        terms.noticePeriod = NOTICE;
        terms.challengePeriod = CHALLENGE;
        terms.quorum = 2;
        terms.arbiters = new address[](3);
        for (uint256 i; i < 3; ++i) {
            terms.arbiters[i] = vm.addr(keys[i]);
        }
        terms.salt = bytes32(salt);
    }

    function bonded(uint256 salt, uint128 amount) internal returns (IBonds.Terms memory terms) {
        terms = termsOf(salt);
        vm.prank(seller);
        bonds.bond(terms, amount);
    }

    function judgementOf(bytes32 evidence, uint128 damage, uint128 amount)
        internal
        view
        returns (IBonds.Judgement memory)
    {
        return IBonds.Judgement(evidence, buyer, damage, amount, uint40(block.timestamp + 1 days));
    }

    /// Signed by the arbiters `first` and `second`.
    function by(uint8 first, uint8 second, bytes32 digest)
        internal
        view
        returns (IBonds.ArbiterSignature[] memory two)
    {
        two = new IBonds.ArbiterSignature[](2);
        two[0] = IBonds.ArbiterSignature(first, signed(keys[first], digest));
        two[1] = IBonds.ArbiterSignature(second, signed(keys[second], digest));
    }

    function propose(IBonds.Terms memory terms, IBonds.Judgement memory judgement) internal {
        bytes32 digest = bonds.getSlashDigest(bonds.getBondId(terms), judgement);
        bonds.proposeSlash(terms, judgement, by(0, 2, digest));
    }

    function uphold(IBonds.Terms memory terms, bytes32 evidence, bytes32 answer) internal {
        bytes32 digest = bonds.getUpholdDigest(bonds.getBondId(terms), evidence, answer);
        bonds.upholdSlash(terms, evidence, by(0, 1, digest));
    }

    function dismiss(IBonds.Terms memory terms, bytes32 evidence) internal {
        bytes32 digest = bonds.getDismissDigest(bonds.getBondId(terms), evidence);
        bonds.dismissSlash(terms, evidence, by(1, 2, digest));
    }

    function moneyOf(IBonds.Terms memory terms)
        internal
        view
        returns (uint128 stake, uint128 reserved, uint128 unlocking, uint40 unlocksAt)
    {
        return bonds.bonds(bonds.getBondId(terms));
    }

    function statusOf(IBonds.Terms memory terms, bytes32 evidence) internal view returns (IBonds.Status status) {
        (status,,,,,) = bonds.slashes(bonds.getBondId(terms), evidence);
    }
}
