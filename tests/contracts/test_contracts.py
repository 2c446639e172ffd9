"""The contracts: what is kept of them is what they compile to, and passes forge's tests of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.contracts import NAMES, Contracts, NotAvailable

ROOT = Path(__file__).parent.parent.parent
VECTORS = json.loads((ROOT / "tests" / "vectors" / "channels.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def contracts() -> Contracts:
    found = Contracts(ROOT)
    try:
        found.install()
    except NotAvailable as missing:
        pytest.skip(str(missing))
    return found


def kept(name: str) -> dict[str, Any]:
    text = (ROOT / "contracts" / "abi" / f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def written(parameter: dict[str, Any]) -> str:
    """A parameter's type as signatures have it."""
    kind = str(parameter["type"])
    if kind.startswith("tuple"):
        kind = f"({','.join(map(written, parameter['components']))}){kind.removeprefix('tuple')}"
    return f"{kind} indexed" if parameter.get("indexed") else kind


@pytest.mark.parametrize("expected", VECTORS["abi"], ids=lambda entry: str(entry["name"]))
def test_channels_have_what_x402_calls(expected: dict[str, Any]) -> None:
    entries = [entry for entry in kept("PaymentChannels")["abi"] if entry.get("name") == expected["name"]]
    found = [
        {"type": entry["type"], "name": entry["name"], "inputs": [written(each) for each in entry["inputs"]]}
        | (
            {"outputs": [written(each) for each in entry["outputs"]], "mutability": entry["stateMutability"]}
            if entry["type"] == "function"
            else {}
        )
        for entry in entries
    ]
    assert found == [expected]


def test_what_is_kept_is_what_the_sources_compile_to(contracts: Contracts) -> None:
    compiled = contracts.compiled()
    assert set(compiled) == set(NAMES)
    changed = [name for name, text in compiled.items() if (contracts.abi / f"{name}.json").read_text() != text]
    assert not changed, f"{', '.join(changed)} changed: make contracts"


def test_what_tests_deploy_is_what_the_sources_compile_to(contracts: Contracts) -> None:
    compiled = contracts.compiled_for_tests()
    changed = [name for name, text in compiled.items() if (contracts.abi_of_tests / f"{name}.json").read_text() != text]
    assert not changed, f"{', '.join(changed)} changed: make contracts"


def test_what_is_kept_passes_the_contracts_own_tests(contracts: Contracts) -> None:
    done = contracts.test()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9][0-9]* tests passed, 0 failed, 0 skipped", done.stdout), done.stdout


def test_the_solidity_keeps_its_one_format(contracts: Contracts) -> None:
    done = contracts.forge("fmt", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_own_tests_reach_nearly_every_line(contracts: Contracts) -> None:
    lines = contracts.lines_reached()
    assert set(lines) == {f"src/{path}.sol" for path in ("PaymentChannels", "Bonds")} | {
        f"src/collectors/{name}.sol" for name in ("ApproveCollector", "ERC3009Collector")
    }
    reached, all_ = map(sum, zip(*lines.values(), strict=True))
    assert reached >= 0.95 * all_, lines
