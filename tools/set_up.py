"""Set up `.venv` from the lock files: what `make run` and `make test` do first.

Everything is installed as the lock says, every file checked against its hash; nothing is resolved here. What
builds the few source packages is locked too and installed first, so that pip fetches no build tool of its own
choice. llama-cpp-python, whose build takes minutes, comes from a cache (tools/llama_wheel.py).

A set-up may be killed at any instant: `.venv` is marked incomplete before it is touched and complete at the
end. An incomplete one is thrown away, unless the user made it. Two set-ups of one clone wait for each other.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path

from tools.commands import SetUpError, alone, watched
from tools.llama_wheel import NAME as LLAMA
from tools.llama_wheel import LlamaWheel, split_lock

BUILD_LOCK, RUN_LOCK, DEV_LOCK = "requirements-build.lock", "requirements.lock", "requirements-dev.lock"
MARK = "set-up.json"  # in .venv: whose making it is and, once complete, what it was made from


class Environment:
    """The virtual environment of one clone."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = str(self.folder / "bin" / "python")
        self.pip = [self.python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        self.llama = LlamaWheel(split_lock(self.text(RUN_LOCK))[0], environment)

    def text(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8")

    def made_from(self) -> str:
        """A digest of all that the environment depends on. The path is part of it, since scripts name it."""
        project = tomllib.loads(self.text("pyproject.toml"))
        installed = [project["build-system"], project["project"], project["tool"]["setuptools"]]
        locks = [self.text(name) for name in (BUILD_LOCK, RUN_LOCK, DEV_LOCK)]
        # The installed project points at each of its packages; one that was added needs its own pointer.
        packages = sorted(path.parent.name for path in self.root.glob("*/__init__.py"))
        parts = [sys.version, str(self.root), self.llama.key, installed, locks, packages]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def compiled_from(self) -> str:
        """A digest of the sources that are compiled into the clone; empty where one of the modules is not there."""
        digest = hashlib.sha256()
        for module in tomllib.loads(self.text("pyproject.toml"))["tool"]["setuptools"]["ext-modules"]:
            if not list(self.root.glob(f"{module['name'].replace('.', '/')}.*.so")):
                return ""
            for source in module["sources"]:
                digest.update(self.text(source).encode())
        return digest.hexdigest()

    def mark(self) -> dict[str, object]:
        """What the mark says. A folder without one was not made here."""
        try:
            mark = json.loads((self.folder / MARK).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"users": True}
        except ValueError:
            return {}
        return mark if isinstance(mark, dict) else {}

    def set_mark(self, **said: object) -> None:
        new = self.folder / f"{MARK}.new"
        new.write_text(json.dumps(said), encoding="utf-8")
        new.replace(self.folder / MARK)

    def set_up(self, dev: bool) -> None:
        """Bring `.venv` to what the lock files say, for `dev` with the tools of the tests."""
        with alone(self.root / "pyproject.toml", "Another set-up of this clone is at work; waiting for it."):
            made_from, mark = self.made_from(), self.mark()
            current = mark.get("made_from") == made_from
            if current and (mark.get("dev") or not dev):
                if mark.get("compiled_from") != self.compiled_from():
                    self.set_mark(**{**mark, "compiled_from": None})
                    self.compile()
                    self.set_mark(**{**mark, "compiled_from": self.compiled_from()})
                return
            check_headers()  # before minutes go by
            # What the user made is added to and never thrown away, as long as it works.
            users = bool(mark.get("users")) and self.works()
            if not (current or users):
                self.create()
            self.set_mark(users=users)
            self.install(dev)
            self.compile()
            self.set_mark(users=users, made_from=made_from, dev=dev, compiled_from=self.compiled_from())

    def works(self) -> bool:
        works = "import pip, sys; sys.exit(sys.version_info < (3, 11))"
        try:
            done = subprocess.run([self.python, "-c", works], capture_output=True, check=False)
        except OSError:
            return False
        return done.returncode == 0

    def create(self) -> None:
        if importlib.util.find_spec("ensurepip") is None:
            raise SetUpError(
                f"{sys.executable} cannot make virtual environments.\n"
                "Debian, Ubuntu: apt install python3-venv, of that Python's version."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.set_mark()
        title = f"Making .venv with Python {platform.python_version()}"
        watched(title, [sys.executable, "-m", "venv", str(self.folder)], self.folder / "venv.log")

    def install(self, dev: bool) -> None:
        locked = [
            *self.pip,
            "install",
            "--require-hashes",
            "--no-deps",
            "--no-build-isolation",
            "--requirement",
        ]
        command = [*locked, str(self.root / BUILD_LOCK)]
        watched("Installing the build tools", command, self.folder / "build-tools.log")
        wheel = self.llama.path(self.pip, self.folder / "llama-build.log")

        lock = DEV_LOCK if dev else RUN_LOCK
        _, others = split_lock(self.text(lock))
        # The lock has the hash of the source, checked when the wheel was built; the wheel goes by its own.
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        wanted = self.folder / "requirements.txt"
        wanted.write_text(f"{others}\n{LLAMA} @ {wheel.as_uri()} --hash=sha256:{digest}\n", encoding="utf-8")
        title = f"Installing the {len(re.findall('^[a-z]', others, re.MULTILINE)) + 1} packages of {lock}"
        watched(title, [*locked, str(wanted)], self.folder / "packages.log")

        title = f"Loading llama.cpp (if this fails, delete {wheel.parent}: it is then built again)"
        watched(title, [self.python, "-c", "import llama_cpp"], self.folder / "llama.log")

    def compile(self) -> None:
        """Install the project itself, of which a part is compiled into the clone."""
        check_headers()
        command = [*self.pip, "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable"]
        command.append(str(self.root))
        watched("Compiling and installing idlemesh", command, self.folder / "idlemesh.log")


def check_headers() -> None:
    """SetUpError where Python's header files, with which a part of idlemesh is compiled, are missing."""
    # Debian's and others' Pythons may be told another `include` path than that of their files.
    places = (sysconfig.get_config_var("INCLUDEPY"), sysconfig.get_path("include"))
    if not any(place and Path(place, "Python.h").exists() for place in places):
        raise SetUpError(
            f"{sys.executable} came without its header files, which a part of idlemesh is compiled with.\n"
            "Debian, Ubuntu: apt install python3-dev, Fedora: dnf install python3-devel, of that Python's version; "
            "macOS: brew install python."
        )


def stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools.set_up", description="Set up .venv from the lock files.")
    parser.add_argument("--dev", action="store_true", help="with the tools that the tests need")
    dev = parser.parse_args().dev
    signal.signal(signal.SIGTERM, stop)
    try:
        Environment(Path(__file__).resolve().parent.parent, os.environ).set_up(dev)
    except (SetUpError, OSError) as error:
        raise SystemExit(f"idlemesh could not be set up. {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nStopped; the next make starts over where it has to.") from None


if __name__ == "__main__":
    main()
