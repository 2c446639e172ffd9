"""The `idlemesh` command."""

from node.cli.main import main

__all__ = ["main"]
