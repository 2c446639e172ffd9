"""`idlemesh wallet slash`: what arbiters want to take of a stake, from their signatures to the money.

A statement is a file that travels by hand: somebody drafts it, each arbiter signs it with its own wallet, offline, and
anybody brings it to the chain once enough have signed.
"""

import asyncio
import hashlib
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ledger.money import Amount, MoneyError, parse_amount
from node.cli.client import call
from node.cli.files import changed_file, new_file
from node.cli.keys import PassphraseOption, read_passphrase
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, local_time, print_facts, print_json
from node.cli.show import slash_line
from node.cli.wallet_calls import AT, STATES, in_path, post
from node.cli.wallet_keys import keystore_of, stablecoin_settings
from node.home import Home, open_home

if TYPE_CHECKING:
    from ledger.rails.stablecoin.keys import Signer
    from ledger.rails.stablecoin.statements import Statement

_DIGEST: Final = re.compile(r"(0x)?[0-9a-fA-F]{64}")
_MAX_FILE: Final = 2**16
_DAY_S: Final = 86_400
_LATEST: Final = 2**37  # calendars end somewhat later

EvidenceArgument = Annotated[
    str, typer.Argument(help="What shows the harm: a file, as `idlemesh export` writes it, or its SHA-256 digest.")
]
FileArgument = Annotated[Path, typer.Argument(help="The statement's file.")]
BondOption = Annotated[str, typer.Option("--bond", help="The bond's whole id; of your own, its beginning or nothing.")]


def list_running(
    one: BondOption = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the slashes that are not decided, of your own bonds or of any, with their deadlines; and what is due to you.

    Example: idlemesh wallet slash list
    """
    query = {"bond": one} if one else {}
    body = call(open_home(home), lambda client: client.get(f"{AT}/slashes", **query))
    if as_json:
        print_json(body)
        return
    for slash in body["slashes"]:
        typer.echo(slash_line(slash))
        typer.echo(f"  bond {slash['bond']}\n  evidence {slash['evidence']}")
    if not body["slashes"]:
        typer.echo("No slash is running.")
    if float(body["due"].removesuffix("usd")):
        typer.echo(f"Slashes have left {body['due']} for this wallet: `idlemesh wallet slash pay-out` fetches it.")


def draft(
    bond: Annotated[str, typer.Argument(help="The bond's whole id, as `idlemesh offers --json` has it.")],
    evidence: EvidenceArgument,
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    buyer: Annotated[str | None, typer.Option(help="The address of who was harmed; it gets the damage.")] = None,
    damage: Annotated[str | None, typer.Option(help="What it has lost, as 5usd.")] = None,
    amount: Annotated[str | None, typer.Option(help="How much of the stake is taken; else the damage.")] = None,
    days: Annotated[int, typer.Option(min=1, max=90, help="For how many days it can be proposed.")] = 30,
    uphold: Annotated[bool, typer.Option("--uphold", help="Uphold a slash that its seller has answered.")] = False,
    dismiss: Annotated[bool, typer.Option("--dismiss", help="Take a slash back.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a statement for arbiters to sign: that a bond is to be slashed, or that a slash is upheld or dismissed.

    The bond's terms, and to what a seller has answered, are read from the chain.

    A slash names who was harmed (--buyer) and by how much (--damage), the other two nothing more.

    Example: idlemesh wallet slash draft 0x3f... export.json slash.json --uphold
    """
    from ledger.rails.stablecoin.bond_terms import BondRefused
    from ledger.rails.stablecoin.statements import Statement

    at, proof = f"{AT}/slashes/bonds/{in_path(bond)}", _digest_of(evidence)
    said = call(open_home(home), lambda client: client.get(at)) | {"evidence": proof, "signatures": {}}
    stake = int(said.pop("stake"))
    if uphold or dismiss:
        if (uphold and dismiss) or buyer or damage or amount:
            raise CommandFailed("give one of --uphold, --dismiss, and --buyer with --damage")
        now = call(open_home(home), lambda client: client.get(f"{at}/{proof}"))
        if uphold and now["answer"] is None:
            raise CommandFailed("the seller has not answered: there is nothing to uphold")
        said |= {"says": "uphold", "answer": now["answer"]} if uphold else {"says": "dismiss"}
    else:
        if buyer is None or damage is None:
            raise CommandFailed("say who was harmed, and by how much: --buyer 0x... --damage 5usd")
        lost = _units(damage)
        taken = lost if amount is None else _units(amount)
        if amount is not None and taken > stake:
            raise CommandFailed(f"--amount is more than the bond's stake, which is {Amount(stake, 'uusd')}")
        deadline = int(time.time()) + days * _DAY_S
        said |= {"says": "slash", "buyer": buyer, "damage": lost, "amount": taken, "deadline": deadline}
    try:
        made = Statement.from_plain(said)
    except BondRefused as error:
        raise CommandFailed(str(error)) from None
    with new_file(file) as out:
        out.write(_raw(made))
    if not as_json:
        _show(made)
    _tell(made, file, as_json)


def sign(
    file: FileArgument, passphrase_file: PassphraseOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Sign a statement as one of the bond's arbiters, with the wallet of this home. Needs no node and no chain.

    What you sign is shown. The signature is added to the file, which then goes to the next arbiter.

    Example: idlemesh wallet slash sign slash.json
    """
    statement = _read(file)
    if not as_json:
        _show(statement)  # before the passphrase is asked for, or a button is to be pressed
    signed = asyncio.run(_sign(statement, open_home(home), passphrase_file))
    with changed_file(file) as out:
        out.write(_raw(signed))
    _tell(signed, file, as_json)


async def _sign(statement: "Statement", home: Home, passphrase_file: Path | None) -> "Statement":
    from ledger.rails.stablecoin.bond_terms import BondRefused
    from ledger.rails.stablecoin.errors import SignerFailed

    signer = await _signer(home, passphrase_file)
    if signer.address not in statement.terms.arbiters:
        raise CommandFailed(f"the wallet of {home.folder} is none of the bond's arbiters: name another with --home")
    try:
        return statement.with_signature(signer.address, await signer.sign(statement.digest, statement.shown))
    except (SignerFailed, BondRefused) as error:
        raise CommandFailed(str(error)) from None


async def _signer(home: Home, passphrase_file: Path | None) -> "Signer":
    from ledger.rails.stablecoin.errors import SignerFailed
    from ledger.rails.stablecoin.keys import CommandSigner, KeysError, open_keystore

    said = stablecoin_settings(home)
    try:
        if said.signer is not None:
            return await CommandSigner.start(said.signer)
        passphrase = read_passphrase(passphrase_file or said.passphrase_file, new=False)
        return open_keystore(keystore_of(home), passphrase)
    except (SignerFailed, KeysError) as error:
        raise CommandFailed(str(error)) from None


def bring(
    files: Annotated[list[Path], typer.Argument(help="The statement's file; copies with other signatures, too.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a statement that enough arbiters have signed to the chain: it proposes, upholds or dismisses a slash.

    Example: idlemesh wallet slash bring slash.json slash-2.json
    """
    from ledger.rails.stablecoin.bond_terms import BondRefused
    from ledger.rails.stablecoin.statements import merged

    try:
        statement = merged(map(_read, files))
    except BondRefused as error:
        raise CommandFailed(str(error)) from None
    _act(home, "bring", [], as_json, statement.to_plain())


def answer(
    evidence: EvidenceArgument,
    reply: Annotated[str, typer.Argument(metavar="ANSWER", help="The file of your answer, or its SHA-256 digest.")],
    one: BondOption = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a slash of your bond in time: then it needs the arbiters' word once more.

    The chain gets the digest of your answer; give the file itself to the arbiters. The last answer counts.

    Example: idlemesh wallet slash answer 0x7c21... answer.txt
    """
    _act(home, f"answer/{in_path(one or '-')}/{_digest_of(evidence)}/{_digest_of(reply)}", [], as_json)


def end(evidence: EvidenceArgument, one: BondOption = "", home: HomeOption = None, as_json: JsonOption = False) -> None:
    """End a slash whose time is over: carry it out if nobody answered, drop it if it was answered and not upheld.

    Example: idlemesh wallet slash end 0x7c21... --bond 0x3fa9...
    """
    _act(home, f"end/{in_path(one or '-')}/{_digest_of(evidence)}", [], as_json)


def pay_out(
    account: Annotated[str | None, typer.Argument(help="Whose money; else this wallet's. Anyone may ask.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch what slashes have left for this wallet, or for another address.

    Example: idlemesh wallet slash pay-out
    """
    _act(home, "pay-out", [("account", account)] if account is not None else [], as_json)


def _act(home: Path | None, path: str, query: list[tuple[str, str]], as_json: bool, statement: object = None) -> None:
    body = post(home, f"slashes/{path}", query, statement)
    if as_json:
        print_json(body)
        return
    what = f"{body['act']}, {body['amount']} to {body['account']}" if "amount" in body else body["act"]
    typer.echo(f"{what}: {STATES.get(body['state'], body['state'])}")


def _digest_of(said: str) -> str:
    """A digest as it is written, or a file's."""
    if _DIGEST.fullmatch(said):
        return f"0x{said.removeprefix('0x').lower()}"
    try:
        with Path(said).open("rb") as file:
            return f"0x{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise CommandFailed(f"{said[:80]!r} is no digest (64 digits), nor a file: {error.strerror}") from None


def _units(said: str) -> int:
    try:
        amount = parse_amount(said)
    except MoneyError as error:
        raise CommandFailed(str(error)) from None
    if amount.unit != "uusd":
        raise CommandFailed(f"{said} is no dollar amount: write it in usd, as in 5usd")
    return amount.value


def _read(file: Path) -> "Statement":
    """A statement with its signatures, checked."""
    from ledger.rails.stablecoin.bond_terms import BondRefused
    from ledger.rails.stablecoin.statements import Statement

    try:
        with file.open("rb") as lines:
            return Statement.from_plain(json.loads(lines.read(_MAX_FILE)))
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CommandFailed(f"{file} is no statement about a bond: it is not JSON") from None
    except BondRefused as error:
        raise CommandFailed(f"{file}: {error}") from None


def _raw(statement: "Statement") -> bytes:
    return json.dumps(statement.to_plain(), indent=1).encode() + b"\n"


def _show(statement: "Statement") -> None:
    """What a statement says."""
    plain = statement.to_plain()
    facts: dict[str, Any] = {name: plain[name] for name in ("says", "network", "contract", "bond", "evidence")}
    if (said := statement.judgement) is not None:
        facts |= {"buyer": plain["buyer"], "damage": _shown(said.damage), "taken": _shown(said.amount)}
        facts["until"] = local_time(1000 * said.deadline) if said.deadline < _LATEST else "for ever"
    if statement.answer is not None:
        facts["answer"] = plain["answer"]
    facts["seller"] = plain["terms"]["seller"]
    print_facts(facts)


def _tell(statement: "Statement", file: Path, as_json: bool) -> None:
    """What it still needs."""
    if as_json:
        print_json(statement.to_plain())
        return
    have, quorum = len(statement.signatures), statement.terms.quorum
    then = "`idlemesh wallet slash bring` takes it to the chain" if have >= quorum else "the next arbiter signs it"
    typer.echo(f"{have} of the {quorum} signatures that it needs are in {file}: {then}.")


def _shown(value: int) -> str:
    return f"{value // 10**6}.{value % 10**6:06}usd"
