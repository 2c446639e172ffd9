"""`python -m node.cli` is the `idlemesh` command, also where its script is not on the path."""

from node.cli.main import main

main()
