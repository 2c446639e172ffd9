// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {IBonds} from "../src/IBonds.sol";
import {IPaymentChannels} from "../src/IPaymentChannels.sol";
import {Test} from "./support/Test.sol";

/// @notice What others compute for the same types: tests/vectors/ says who.
contract VectorsTest is Test {
    string private json;

    function key(string memory path, string memory name) private pure returns (string memory) {
        return string.concat(path, ".", name);
    }

    function number(string memory path, string memory name) private view returns (uint256) {
        return vm.parseJsonUint(json, key(path, name));
    }

    function word(string memory path, string memory name) private view returns (bytes32) {
        return vm.parseJsonBytes32(json, key(path, name));
    }

    function account(string memory path, string memory name) private view returns (address) {
        return vm.parseJsonAddress(json, key(path, name));
    }

    function blob(string memory path, string memory name) private view returns (bytes memory) {
        return vm.parseJsonBytes(json, key(path, name));
    }

    function element(string memory path, uint256 index) private pure returns (string memory) {
        return string.concat(path, "[", vm.toString(index), "]");
    }

    /// The contract's code at the address that the vectors are for.
    function placed(string memory name, string memory vectors) private returns (address place) {
        json = vm.readFile(string.concat("../tests/vectors/", vectors));
        place = vm.parseJsonAddress(json, ".contract");
        vm.etch(place, deployed(name, "").code);
    }

    function configAt(string memory path) private view returns (IPaymentChannels.ChannelConfig memory) {
        return IPaymentChannels.ChannelConfig({
            payer: account(path, "payer"),
            payerAuthorizer: account(path, "payerAuthorizer"),
            receiver: account(path, "receiver"),
            receiverAuthorizer: account(path, "receiverAuthorizer"),
            token: account(path, "token"),
            withdrawDelay: uint40(number(path, "withdrawDelay")),
            salt: word(path, "salt")
        });
    }

    function test_channels_agree_with_x402() public {
        IPaymentChannels channels = IPaymentChannels(placed("PaymentChannels", "channels.json"));
        uint256 cases;
        for (; vm.keyExistsJson(json, element(".cases", cases)); ++cases) {
            string memory path = element(".cases", cases);
            vm.chainId(number(path, "chain_id"));
            agrees(channels, path);
        }
        assertEq(cases, 6, "cases");
    }

    function agrees(IPaymentChannels channels, string memory path) private view {
        uint256 count;
        while (vm.keyExistsJson(json, element(key(path, "channels"), count))) ++count;
        IPaymentChannels.VoucherClaim[] memory all = new IPaymentChannels.VoucherClaim[](count);
        for (uint256 i; i < count; ++i) {
            string memory place = element(key(path, "channels"), i);
            IPaymentChannels.ChannelConfig memory config = configAt(place);
            bytes32 id = channels.getChannelId(config);
            assertEq(id, word(place, "channelId"), "channel id");
            uint128 most = uint128(number(place, "maxClaimableAmount"));
            bytes32 digest = channels.getVoucherDigest(id, most);
            assertEq(digest, word(place, "voucherDigest"), "voucher digest");
            all[i] = IPaymentChannels.VoucherClaim(
                IPaymentChannels.Voucher(config, most),
                blob(place, "voucherSignature"),
                uint128(number(place, "totalClaimed"))
            );
            address signer = ECDSA.recover(digest, all[i].signature);
            assertTrue(signer == account(path, "voucher_signer"), "voucher signer");
            bytes32 nonce = keccak256(abi.encode(id, number(place, "depositSalt")));
            assertEq(nonce, word(place, "depositNonce"), "nonce of the deposit");
        }
        address authorizer = account(path, "receiver_authorizer");
        bytes32 claimed = channels.getClaimBatchDigest(all);
        assertEq(claimed, word(path, "claimBatchDigest"), "claim digest");
        assertTrue(ECDSA.recover(claimed, blob(path, "claimBatchSignature")) == authorizer, "claim signer");
        refundAgrees(channels, channels.getChannelId(all[0].voucher.channel), key(path, "refund"), authorizer);
    }

    function refundAgrees(IPaymentChannels channels, bytes32 id, string memory path, address authorizer) private view {
        bytes32 digest = channels.getRefundDigest(id, number(path, "nonce"), uint128(number(path, "amount")));
        assertEq(digest, word(path, "digest"), "refund digest");
        assertTrue(ECDSA.recover(digest, blob(path, "signature")) == authorizer, "refund signer");
    }

    function termsAt(string memory path) private view returns (IBonds.Terms memory terms) {
        terms.seller = account(path, "seller");
        terms.token = account(path, "token");
        terms.sink = account(path, "sink");
        terms.noticePeriod = uint40(number(path, "noticePeriod"));
        terms.challengePeriod = uint40(number(path, "challengePeriod"));
        terms.quorum = uint8(number(path, "quorum"));
        uint256 count;
        while (vm.keyExistsJson(json, element(key(path, "arbiters"), count))) ++count;
        terms.arbiters = new address[](count);
        for (uint256 i; i < count; ++i) {
            terms.arbiters[i] = vm.parseJsonAddress(json, element(key(path, "arbiters"), i));
        }
        terms.salt = word(path, "salt");
    }

    function test_bonds_agree_with_another_encoder() public {
        IBonds bonds = IBonds(placed("Bonds", "bonds.json"));
        uint256 cases;
        for (; vm.keyExistsJson(json, element(".cases", cases)); ++cases) {
            string memory path = element(".cases", cases);
            vm.chainId(number(path, "chain_id"));
            bytes32 id = bonds.getBondId(termsAt(key(path, "terms")));
            assertEq(id, word(path, "bondId"), "bond id");
            string memory place = key(path, "judgement");
            IBonds.Judgement memory judgement = IBonds.Judgement({
                evidence: word(place, "evidence"),
                buyer: account(place, "buyer"),
                damage: uint128(number(place, "damage")),
                amount: uint128(number(place, "amount")),
                deadline: uint40(number(place, "deadline"))
            });
            assertEq(bonds.getSlashDigest(id, judgement), word(path, "slashDigest"), "slash");
            bytes32 uphold = bonds.getUpholdDigest(id, judgement.evidence, word(path, "answer"));
            assertEq(uphold, word(path, "upholdDigest"), "uphold");
            assertEq(bonds.getDismissDigest(id, judgement.evidence), word(path, "dismissDigest"), "dismiss");
        }
        assertEq(cases, 3, "cases");
    }
}
