"""Every command, also one that is added later, explains itself and can be used from scripts."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from node.cli.main import app
from tests.node.cli.conftest import Idlemesh

Path = tuple[str, ...]


def commands_in(group: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All commands under a group, groups within it included."""
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands_in(command, (*path, name))
        else:
            yield (*path, name), command


ROOT: Any = typer.main.get_command(app)
COMMANDS = dict(commands_in(ROOT))


def example_of(command: Any) -> str:
    found = re.search(r"^\s*Example: (idlemesh .*)$", command.help or "", re.MULTILINE)
    assert found, f"no example in: {command.help}"
    return found[1]


def test_the_promised_commands_are_there() -> None:
    promised = [
        "up",
        "ask",
        "id",
        "status",
        "peers",
        "offers",
        "receipts",
        "accounts",
        "settle",
        "settlements",
        "confirm",
        "net",
        "retry",
        "disputes",
        "resolve",
        "forgive",
        "dismiss",
        "audit",
        "verify",
        "export",
        "calibrate",
        "demo",
    ]
    assert {(name,) for name in promised} | {("key", "api"), ("ledger", "upgrade")} <= COMMANDS.keys()
    wallet = ["create", "import", "address", "deposit", "channels", "claim", "withdraw", "bond", "unbond"]
    assert {("wallet", name) for name in wallet} <= COMMANDS.keys()


def test_a_command_that_asks_the_running_node_imports_nothing_else_of_one() -> None:
    """To import all of a node takes longer than all else that such a command does."""
    loaded = "import sys; from node.cli import main; from node.cli.look import status; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    assert not {"node.app", "node.config", "ledger.database", "numpy", "sqlalchemy"} & set(modules)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_has_help_with_an_example(path: Path, idlemesh: Idlemesh) -> None:
    said = idlemesh(*path, "--help")
    assert said.status == 0
    assert example_of(COMMANDS[path]) in said.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_can_print_json(path: Path) -> None:
    assert "--json" in {option for parameter in COMMANDS[path].params for option in parameter.opts}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_of_a_command_is_explained(path: Path) -> None:
    for parameter in COMMANDS[path].params:
        assert parameter.help or parameter.name == "help", f"{parameter.name} is not explained"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_example_of_a_command_is_one_that_it_takes(path: Path) -> None:
    words = shlex.split(example_of(COMMANDS[path]))
    assert words[0] == "idlemesh"
    assert tuple(words[1 : 1 + len(path)]) == path
    with COMMANDS[path].make_context(path[-1], words[1 + len(path) :]) as context:
        assert context.params


@pytest.mark.parametrize(
    "arguments", [[], ["key"], ["nonsense"], ["ask"], ["up", "--port", "many"], ["peers", "--nonsense"]], ids=" ".join
)
def test_a_command_line_that_makes_no_sense_is_answered_with_the_usage(
    arguments: list[str], idlemesh: Idlemesh
) -> None:
    said = idlemesh(*arguments)
    assert said.status == 2
    assert "Usage: idlemesh" in said.out + said.err
    assert "Traceback" not in said.err
