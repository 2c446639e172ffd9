"""The wheel of llama-cpp-python: built once per machine, then found in the user's cache folder.

It comes as source only and takes minutes to build. The key of a build is everything that shapes it: the
source (by version and hash), the flags, what the CPU can do, the C library. A wheel enters the cache by a
rename, so one that is there is whole, and two builds by one user wait for each other.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.commands import SetUpError, alone, watched

NAME = "llama-cpp-python"
# llama.cpp's library alone: no multimodal part, tests or example programs.
CMAKE_FLAGS = "-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
# GCC 12 miscompiles llama.cpp's AMX tile configuration: the first batch crashes at `ldtilecfg`.
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def split_lock(lock: str) -> tuple[str, str]:
    """The requirement of llama-cpp-python and all the others, each as text for pip's `--requirement`."""
    requirements = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)
    ours = [text for text in requirements if text.startswith(f"{NAME}==")]
    return "".join(ours), "".join(text for text in requirements if text not in ours)


def cpu_features() -> str:
    """What this CPU can do, in the system's words: llama.cpp is built for exactly this."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        # x86 has flags; Arm has Features, and its compilers tune by implementer and part.
        told = ("flags", "Features", "CPU implementer", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(told)}))
    command = ["sysctl", "machdep.cpu.brand_string", "hw.optional"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def build_flags(features: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that shape the build. The user's own come last, so that they prevail."""
    amx = WITHOUT_AMX if "amx_tile" in features.split() else ""
    ours = {"CMAKE_ARGS": CMAKE_FLAGS, "CFLAGS": amx, "CXXFLAGS": amx}
    return {name: f"{value} {environment.get(name, '')}".strip() for name, value in ours.items()}


def wheel_key(requirement: str, flags: Mapping[str, str], features: str) -> str:
    """The name of a build in the cache: builds of one key can stand for each other."""
    system = [platform.machine(), sys.platform, *platform.libc_ver()]
    shaped_by = [requirement, sorted(flags.items()), features, system]
    return hashlib.sha256(json.dumps(shaped_by).encode()).hexdigest()[:32]


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where wheels are kept: `idlemesh/wheels` in the user's cache folder (XDG base directories)."""
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    # The specification has relative paths ignored.
    return (named if named.is_absolute() else Path.home() / ".cache") / "idlemesh" / "wheels"


def compiler_for(environment: Mapping[str, str], find: Callable[[str], str | None] = shutil.which) -> list[str]:
    """The command of the C++ compiler; SetUpError that says what to install where the build cannot work."""
    named = shlex.split(environment.get("CXX", ""))
    compiler = named or [name for name in ("c++", "g++", "clang++") if find(name)][:1]
    lacking = [
        *(["a C++ compiler"] if not compiler else []),
        *(["cmake"] if not find("cmake") else []),
        *(["make"] if not (find("make") or find("ninja")) else []),
    ]
    if lacking:
        raise SetUpError(
            f"llama.cpp has to be built once on this machine, for which it lacks {' and '.join(lacking)}.\n"
            "Debian, Ubuntu: apt install g++ cmake make; Fedora: dnf install gcc-c++ cmake make; "
            "macOS: xcode-select --install, then brew install cmake."
        )
    return compiler


def accepts(compiler: list[str], flags: str) -> bool:
    command = [*compiler, *flags.split(), "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class LlamaWheel:
    """The wheel that this machine needs: `key` names it, `path` finds or builds it."""

    def __init__(self, requirement: str, environment: Mapping[str, str]) -> None:
        self.requirement = requirement
        self.environment = environment
        features = cpu_features()
        self.flags = build_flags(features, environment)
        self.key = wheel_key(requirement, self.flags, features)
        self.cache = cache_folder(environment)

    def kept(self) -> Path | None:
        return next((self.cache / self.key).glob("*.whl"), None)

    def path(self, pip: list[str], log: Path) -> Path:
        """The wheel's file. `pip` runs where the locked build tools are installed."""
        if wheel := self.kept():
            return wheel
        self.cache.mkdir(parents=True, exist_ok=True)
        with alone(self.cache / "lock", "Another set-up is building llama.cpp; waiting for it."):
            return self.kept() or self.build(pip, log)

    def build(self, pip: list[str], log: Path) -> Path:
        compiler = compiler_for(self.environment)
        environment = {**self.environment, **self.flags}
        if not accepts(compiler, WITHOUT_AMX):  # one too old to know AMX does not use it either
            for name in ("CFLAGS", "CXXFLAGS"):
                environment[name] = environment[name].replace(WITHOUT_AMX, "").strip()
        environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))

        workplace, finished = self.cache / f"{self.key}.building", self.cache / self.key
        for left_over in (workplace, finished):  # by a build that was killed, or a wheel that was deleted
            shutil.rmtree(left_over, ignore_errors=True)
        workplace.mkdir()
        source = workplace / "requirements.txt"
        source.write_text(self.requirement, encoding="utf-8")
        # pip's own cache would hand out a wheel that was built with other flags.
        whence = ["--no-cache-dir", "--no-deps", "--no-binary", NAME, "--require-hashes", "--requirement"]
        command = [*pip, "wheel", "--verbose", "--no-build-isolation", *whence, str(source)]
        title = "Building llama.cpp, once per machine (3 to 6 minutes)"
        watched(title, [*command, "--wheel-dir", str(workplace)], log, environment)
        workplace.rename(finished)
        return next(finished.glob("*.whl"))
