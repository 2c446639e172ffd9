"""The rules that a program can check: one format, no lint, types that hold, imports that point one way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        "ruff format --check --diff",
        "ruff check",
        "mypy",  # strict, and of all files: pyproject.toml
        "lint-imports --no-cache",
    ],
)
def test_the_code_keeps_the_rules_checked_by(command: str) -> None:
    tool, *arguments = command.split()
    done = subprocess.run([TOOLS / tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
