"""The wallet's key, in its file and behind a command."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from eth_account import Account
from eth_account.messages import encode_typed_data

from ledger.rails.stablecoin.digests import keccak
from ledger.rails.stablecoin.errors import SignerFailed
from ledger.rails.stablecoin.keys import (
    BadKey,
    BadKeystore,
    CommandSigner,
    Key,
    KeystoreThere,
    NoKeystore,
    WrongPassphrase,
    create_keystore,
    keystore_address,
    open_keystore,
)
from ledger.rails.stablecoin.vouchers import signer_of
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import Pair
from tests.ledger.rails.stablecoin.conftest import Opens
from tests.ledger.rails.stablecoin.trading import DEPTH, trade

SECRET = bytes(range(1, 33))
CHEAP = 16

SIGNER = """
import json, sys
asked = json.load(sys.stdin)
if asked["ask"] == "address":
    print(json.dumps({{"address": "{address}"}}))
else:
    {then}
"""
SIGN = """import coincurve
    raw = coincurve.PrivateKey({secret!r}).sign_recoverable({what}, hasher=None)
    print(json.dumps({{"signature": "0x" + raw[:64].hex() + bytes([raw[64] + 27]).hex()}}))"""
RIGHT = SIGN.format(secret=SECRET, what='bytes.fromhex(asked["digest"][2:])')
WRONG = SIGN.format(secret=SECRET, what="bytes(32)")


def signer_command(tmp_path: Path, then: str) -> list[str]:
    script = tmp_path / "signer.py"
    script.write_text(SIGNER.format(then=then, address=f"0x{Key.of(SECRET).address.hex()}"))
    return [sys.executable, str(script)]


def test_a_keystore_gives_back_its_key_and_other_wallets_read_it(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    address = create_keystore(path, "a long passphrase", secret=SECRET, cost=CHEAP)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keystore_address(path) == address
    assert open_keystore(path, "a long passphrase").address == address
    assert bytes(Account.decrypt(json.loads(path.read_text()), "a long passphrase")) == SECRET
    assert bytes.fromhex(Account.from_key(SECRET).address[2:]) == address


def test_keystores_of_other_wallets_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    path.write_text(json.dumps(Account.encrypt(SECRET, "passphrase", kdf="pbkdf2", iterations=CHEAP)))
    assert open_keystore(path, "passphrase").address == Key.of(SECRET).address


def test_a_keystore_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    create_keystore(path, "passphrase", cost=CHEAP)
    before = path.read_bytes()
    with pytest.raises(KeystoreThere):
        create_keystore(path, "another", cost=CHEAP)
    assert path.read_bytes() == before


def test_what_does_not_open_says_why(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    with pytest.raises(NoKeystore, match="wallet create"):
        open_keystore(path, "passphrase")
    create_keystore(path, "passphrase", secret=SECRET, cost=CHEAP)
    with pytest.raises(WrongPassphrase):
        open_keystore(path, "another")
    for text in ("", "[]", "{}", '{"version": 3, "crypto": {}}', "x" * 20_000):
        path.write_text(text)
        with pytest.raises(BadKeystore):
            open_keystore(path, "passphrase")
    with pytest.raises(BadKey):
        Key.of(bytes(32))


def test_a_key_is_not_in_its_text() -> None:
    made = Key.of(SECRET)
    assert SECRET.hex() not in f"{made!r}{made}"


async def test_signatures_are_those_of_eth_account() -> None:
    typed = {
        "domain": {"name": "n", "version": "1", "chainId": 1, "verifyingContract": "0x" + "11" * 20},
        "types": {"Thing": [{"name": "id", "type": "bytes32"}]},
        "primaryType": "Thing",
        "message": {"id": bytes(32)},
    }
    expected = Account.sign_typed_data(SECRET, full_message=typed)
    assert await Key.of(SECRET).sign(bytes(expected.message_hash), {}) == bytes(expected.signature)


async def test_a_command_signs_without_the_key_being_here(tmp_path: Path) -> None:
    command = signer_command(tmp_path, RIGHT)
    signer = await CommandSigner.start(command)
    assert signer.address == Key.of(SECRET).address
    signature = await signer.sign(b"d" * 32, {"typed_data": {}})
    assert signer_of(b"d" * 32, signature) == signer.address


@pytest.mark.parametrize(
    ("then", "why"),
    [
        (WRONG, "not a signature by"),
        ('print("x" * 100_000)', "more than"),
        ('print("no")', "JSON object"),
        ('print("[]")', "JSON object"),
        ('print("{}")', "did not answer"),
        ("sys.exit(3)", "ended with 3"),
        ("import time; time.sleep(600)", "did not answer in"),
    ],
)
async def test_a_command_that_does_not_sign_is_told(tmp_path: Path, then: str, why: str) -> None:
    signer = await CommandSigner.start(signer_command(tmp_path, then))
    slow = "sleep" in then
    with pytest.raises(SignerFailed, match=why):
        await CommandSigner(signer._command, signer.address, 0.2 if slow else 60).sign(b"d" * 32, {})


async def test_a_command_that_is_not_there_is_told() -> None:
    with pytest.raises(SignerFailed, match="does not start"):
        await CommandSigner.start(["/nowhere/signer"])


@define
class Careful:
    """A signer that signs only what it is shown."""

    key: Key
    seen: list[str] = field(factory=list)

    @property
    def address(self) -> bytes:
        return self.key.address

    async def sign(self, digest: bytes, shown: Mapping[str, Any]) -> bytes:
        shown = json.loads(json.dumps(shown))
        if "typed_data" in shown:
            message = encode_typed_data(full_message=shown["typed_data"])
            assert keccak(b"\x19" + message.version + message.header + message.body) == digest
        else:
            signed = Account.sign_transaction(dict(shown["transaction"]), SECRET)
            assert Key.of(SECRET).signature(digest)[:32] == signed.r.to_bytes(32, "big")
        self.seen += shown
        return self.key.signature(digest)


async def test_a_signer_is_shown_what_it_signs(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, payee = await opens(Careful(pair.payer)), await opens(Careful(pair.receiver))
    await pair.deposit(payee, payer, 1_000)
    typed = {
        "domain": {"name": "n", "chainId": 31337},
        "types": {"Thing": [{"name": "id", "type": "uint256"}]},
        "primaryType": "Thing",
        "message": {"id": 1},
    }
    await payer.sign_typed(typed)
    assert chain.channel(payee.place.channel_id(pair.config)) == (1_000, 0)


async def test_a_signer_is_shown_the_refund_that_it_signs(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(50_000_000)  # worth the gas of who brings it
    careful = Careful(one.seller.wallet)
    one.seller.chain._signer = careful
    await one.seller.rail.perform(one.effect("refund", 400, 0))
    chain.mine(DEPTH)
    assert (careful.seen, (await one.look()).withdrawn) == (["typed_data"], 400)
