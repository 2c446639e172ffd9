"""Options that many commands have."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The node's folder; else IDLEMESH_HOME, else ~/.idlemesh.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
