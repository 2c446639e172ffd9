"""Build and test `contracts/` with the tools that npm brings: `make contracts`.

Nothing here is needed to install or run a node: ABI and bytecode are kept in `contracts/abi/`, and this writes them.
Node with npm has to be there; compiler, forge and library come as `contracts/package-lock.json` says.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools.commands import SetUpError, alone, watched

NAMES: Final = ("PaymentChannels", "Bonds", "ApproveCollector", "ERC3009Collector")
FOR_TESTS: Final = {"Dollar": "Tokens", "Multicall": "Multicall"}  # what tests on a chain deploy besides, by source
RELEASE: Final = "release"  # the profile of foundry.toml that makes what is kept
KEPT: Final = "kept"  # and the one for tests of what is kept


class NotAvailable(SetUpError):
    """This machine cannot build contracts; the message says why."""


class Contracts:
    """The contracts of one clone."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "contracts"
        self.abi = self.folder / "abi"
        self.abi_of_tests = self.folder / "test" / "abi"
        self.build = root / "build" / "contracts"
        self.programs = self.folder / "node_modules" / ".bin"

    def install(self) -> None:
        """Bring `node_modules` to what the lock file says. Two at once wait for each other."""
        npm = shutil.which("npm")
        if npm is None:
            raise NotAvailable(
                "Contracts need Node with npm, and it is not on the PATH.\nDebian, Ubuntu: apt install npm"
            )
        lock = (self.folder / "package-lock.json").read_bytes()
        mark, made_from = self.folder / "node_modules" / ".made-from", hashlib.sha256(lock).hexdigest()
        self.build.mkdir(parents=True, exist_ok=True)
        with alone(self.folder / "package.json", "Another set-up of the contracts' tools is at work; waiting for it."):
            if not mark.exists() or mark.read_text() != made_from:
                command = [npm, "ci", "--prefix", str(self.folder)]
                watched("Installing the contracts' tools", command, self.build / "npm.log")
                mark.write_text(made_from)
        if self.program is None:
            raise NotAvailable(
                f"npm has no forge for {platform.system()} on {platform.machine()}, and none is on the PATH."
            )

    @property
    def program(self) -> str | None:
        """Forge: npm's for this platform, or else the machine's own."""
        return shutil.which("forge", path=self.programs) or shutil.which("forge")

    @property
    def anvil(self) -> str | None:
        """A chain of one's own, by the same rule."""
        return shutil.which("anvil", path=self.programs) or shutil.which("anvil")

    def forge(
        self, *arguments: str, profile: str = "default", committed: bool = False, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run forge; for `committed`, the tests deploy the bytecode that is kept, not what they compile."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FOUNDRY_")}
        environment |= {"FOUNDRY_PROFILE": profile, "COMMITTED": str(committed).lower(), "NO_COLOR": "1"} | dict(
            more or {}
        )
        command = [str(self.program), *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def test(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run forge's tests of what is kept."""
        return self.forge("test", *arguments, profile=KEPT, committed=True)

    def compiled(self) -> dict[str, str]:
        """What the sources compile to: for each contract the text of its file in `abi/`."""
        done = self.forge("build", profile=RELEASE)
        if done.returncode:
            raise SetUpError(f"The contracts do not compile.\n{done.stdout}{done.stderr}")
        return {name: self.kept(self.build / RELEASE / f"{name}.sol" / f"{name}.json") for name in NAMES}

    def compiled_for_tests(self) -> dict[str, str]:
        """The same of the contracts that tests alone deploy; their files are in `test/abi/`."""
        done = self.forge("build", *(f"test/support/{source}.sol" for source in FOR_TESTS.values()))
        if done.returncode:
            raise SetUpError(f"The tests' contracts do not compile.\n{done.stdout}{done.stderr}")
        return {
            name: self.kept(self.build / "out" / f"{source}.sol" / f"{name}.json") for name, source in FOR_TESTS.items()
        }

    def kept(self, artifact: Path) -> str:
        made = json.loads(artifact.read_text(encoding="utf-8"))
        entries = ",\n".join(f"  {json.dumps(entry)}" for entry in made["abi"])
        return f'{{\n "abi": [\n{entries}\n ],\n "bytecode": "{made["bytecode"]["object"]}"\n}}\n'

    def lines_reached(self) -> dict[str, tuple[int, int]]:
        """How many lines of each contract's source forge's tests reach, and how many it has."""
        report = self.build / "coverage.lcov"
        # Measured without optimization, so not with the tests of gas; few random inputs reach the same lines as many.
        few = {"FOUNDRY_FUZZ_RUNS": "16", "FOUNDRY_INVARIANT_RUNS": "2"}
        options = ["--no-match-contract", "GasTest", "--report", "lcov", "--report-file", str(report)]
        done = self.forge("coverage", *options, more=few)
        if done.returncode:
            raise SetUpError(f"The tests' reach could not be measured.\n{done.stdout}{done.stderr}")
        lines: dict[str, tuple[int, int]] = {}
        for part in report.read_text(encoding="utf-8").split("end_of_record"):
            said = dict(line.split(":", 1) for line in part.split() if ":" in line)
            if said.get("SF", "").startswith("src/"):
                lines[said["SF"]] = int(said["LH"]), int(said["LF"])
        return lines

    def slither(self) -> int:
        """Run slither on the contracts; fails on findings above low that the sources do not explain."""
        folder = self.build / "slither"
        lock = self.folder / "slither.lock"
        made_from, mark = hashlib.sha256(lock.read_bytes()).hexdigest(), folder / "made-from"
        if not mark.exists() or mark.read_text() != made_from:
            shutil.rmtree(folder, ignore_errors=True)
            watched(
                "Making an environment for slither",
                [sys.executable, "-m", "venv", str(folder)],
                self.build / "venv.log",
            )
            install = [str(folder / "bin" / "pip"), "install", "--require-hashes", "--no-deps", "-r", str(lock)]
            watched("Installing slither", install, self.build / "slither.log")
            mark.write_text(made_from)
        path = os.pathsep.join([str(self.programs), os.environ.get("PATH", "")])
        command = [str(folder / "bin" / "slither"), ".", "--config-file", "slither.json"]
        return subprocess.run(command, cwd=self.folder, env=os.environ | {"PATH": path}, check=False).returncode


def main() -> int:
    contracts = Contracts(Path(__file__).parent.parent)
    try:
        contracts.install()
        if sys.argv[1:] == ["--slither"]:
            return contracts.slither()
        for name, text in contracts.compiled().items():
            (contracts.abi / f"{name}.json").write_text(text, encoding="utf-8")
        for name, text in contracts.compiled_for_tests().items():
            (contracts.abi_of_tests / f"{name}.json").write_text(text, encoding="utf-8")
    except SetUpError as failure:
        print(failure, file=sys.stderr)
        return 1
    done = contracts.test(*sys.argv[1:])
    print(done.stdout, done.stderr, sep="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
