"""Groups of commands that import only the one that is asked for.

To import all of a node takes seconds on a slow machine, and most commands only call the node that runs.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """Knows its commands by their names and places. See `group`.

    The types of what it overrides have no public names.
    """

    places: Mapping[str, str]

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order in which help lists them."""
        return list(self.places)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name, imported now; None for no name of ours."""
        if cmd_name not in self.places:
            return None
        module, name = self.places[cmd_name].split(":")
        found = getattr(import_module(f"node.cli.{module}"), name)
        command = typer.main.get_command(found if isinstance(found, typer.Typer) else _alone(found))
        command.name = cmd_name
        return command


def group(places: Mapping[str, str], **settings: Any) -> typer.Typer:
    """A program, or a group in one, of commands: for each name the `module:function` in this package that it runs,
    or the `module:group`. `settings` as typer.Typer takes them.
    """
    cls = type("Group", (LazyGroup,), {"places": places})
    made = _typer(cls=cls, no_args_is_help=True, **settings)
    made.callback()(_nothing)
    return made


def _nothing() -> None:
    """What stands before the commands of a group: with it, Typer makes a group also where it sees no command."""


def _alone(function: Any) -> typer.Typer:
    one = _typer()
    one.command()(function)
    return one


def _typer(**settings: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings)
