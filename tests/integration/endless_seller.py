"""A seller whose answers go on and on, a token every few milliseconds: so that a test can break in on them.

`python -m tests.integration.endless_seller --home … --config …`. It offers the demo model; its tokens come from an
engine without weights that never ends an answer by itself.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Final

from node.config import load_config
from node.engine.hardware import Plan
from node.engine.memory import MemoryEngine
from node.engine.port import Engine, Rows
from node.home import Home
from node.models.manifest import Manifest
from node.models.vocab import open_vocab
from node.serve import say_started_json, serve

SECONDS_PER_TOKEN: Final = 0.01


class EndlessEngine(MemoryEngine):
    """Leaves out the tokens that end an answer, or that are no text."""

    def __init__(self, manifest: Manifest, silent: frozenset[int], **settings: Any) -> None:
        super().__init__(manifest, eog=frozenset(), **settings)
        self._silent = sorted(silent)

    def logits(self, ids: Any) -> Rows:
        rows = super().logits(ids)
        rows[self._silent] = float("-inf")
        return rows


async def load_endless(path: Path, manifest: Manifest, plan: Plan, pace: float = SECONDS_PER_TOKEN) -> Engine:
    vocab = open_vocab(path)
    try:
        silent = vocab.eog | vocab.control
        return EndlessEngine(manifest, silent, vocabulary=vocab.size, seconds_per_token=pace, slots=plan.slots)
    finally:
        vocab.close()


def main() -> None:
    """Run the node until it is told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--pace", type=float, default=SECONDS_PER_TOKEN)
    arguments = parser.parse_args()
    load = partial(load_endless, pace=arguments.pace)
    serve(Home(arguments.home), load_config(arguments.config, {}), say_started_json, load)


if __name__ == "__main__":
    main()
