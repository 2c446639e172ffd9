"""A seller that offers Q8_0 and runs other weights: `python -m node.demo.cheat --home … --weights cheap.gguf`.

It is a whole node with an Engine of the demo's own: everything it says is about the model that it offers, and what
it computes comes from other weights. The `idlemesh` command has no option for that.
"""

import argparse
from pathlib import Path

from node.app import load_llama
from node.config import load_config
from node.engine.hardware import Plan
from node.engine.port import Engine
from node.home import Home
from node.models.manifest import Manifest
from node.serve import say_started_json, serve


def main() -> None:
    """Run the node until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    arguments = parser.parse_args()

    async def load_other_weights(_path: Path, manifest: Manifest, plan: Plan) -> Engine:
        return await load_llama(arguments.weights, manifest, plan)

    serve(Home(arguments.home), load_config(arguments.config, {}), say_started_json, load_other_weights)


if __name__ == "__main__":
    main()
