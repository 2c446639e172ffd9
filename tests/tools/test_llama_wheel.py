"""Which build of llama.cpp a machine needs, and where it is found again."""

from pathlib import Path

import pytest

from tools.commands import SetUpError
from tools.llama_wheel import (
    CMAKE_FLAGS,
    WITHOUT_AMX,
    LlamaWheel,
    build_flags,
    cache_folder,
    compiler_for,
    cpu_features,
    split_lock,
    wheel_key,
)

LOCK = """\
jinja2==3.1.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via llama-cpp-python
llama-cpp-python==0.3.36 \\
    --hash=sha256:cc
    # via idlemesh (pyproject.toml)
mako==1.4.3 \\
    --hash=sha256:dd
"""
REQUIREMENT = "llama-cpp-python==0.3.36 --hash=sha256:cc"
PLAIN_CPU = "flags : fpu avx avx2"
AMX_CPU = "flags : fpu avx avx2 amx_bf16 amx_tile amx_int8"


def nothing_installed(name: str) -> None:
    return None


def test_the_lock_is_split_into_llama_and_the_rest_with_their_hashes() -> None:
    llama, others = split_lock(LOCK)
    assert llama.startswith("llama-cpp-python==0.3.36 \\\n    --hash=sha256:cc\n")
    assert [line for line in others.splitlines() if line[0] != " "] == ["jinja2==3.1.6 \\", "mako==1.4.3 \\"]
    assert others.count("--hash") == 3


def test_the_locks_of_this_project_name_one_source_of_llama() -> None:
    root = Path(__file__).parents[2]
    run, dev = (
        split_lock((root / name).read_text(encoding="utf-8"))[0]
        for name in ("requirements.lock", "requirements-dev.lock")
    )
    assert run.count("--hash=sha256:") == 1
    assert run.split("#", maxsplit=1)[0] == dev.split("#", maxsplit=1)[0]


def test_the_own_cpu_has_features_that_stay_the_same() -> None:
    assert cpu_features()
    assert cpu_features() == cpu_features()


def test_amx_is_left_out_on_a_cpu_that_has_it_and_nowhere_else() -> None:
    assert build_flags(AMX_CPU, {})["CXXFLAGS"] == WITHOUT_AMX
    assert build_flags(AMX_CPU, {})["CFLAGS"] == WITHOUT_AMX
    assert build_flags(PLAIN_CPU, {}) == {"CMAKE_ARGS": CMAKE_FLAGS, "CFLAGS": "", "CXXFLAGS": ""}


def test_flags_of_the_user_come_after_ours() -> None:
    flags = build_flags(AMX_CPU, {"CMAKE_ARGS": "-DGGML_CUDA=ON", "CFLAGS": "-g"})
    assert flags["CMAKE_ARGS"] == f"{CMAKE_FLAGS} -DGGML_CUDA=ON"
    assert flags["CFLAGS"] == f"{WITHOUT_AMX} -g"


def test_another_source_other_flags_or_another_cpu_are_another_build() -> None:
    flags = build_flags(PLAIN_CPU, {})
    keys = {
        wheel_key(REQUIREMENT, flags, PLAIN_CPU),
        wheel_key(REQUIREMENT.replace("cc", "dd"), flags, PLAIN_CPU),
        wheel_key(REQUIREMENT, build_flags(PLAIN_CPU, {"CMAKE_ARGS": "-DGGML_CUDA=ON"}), PLAIN_CPU),
        wheel_key(REQUIREMENT, flags, AMX_CPU),
    }
    assert len(keys) == 4
    assert wheel_key(REQUIREMENT, dict(flags), PLAIN_CPU) in keys


def test_wheels_are_kept_where_xdg_says_or_under_the_home_folder(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "idlemesh" / "wheels"
    assert cache_folder({}) == Path.home() / ".cache" / "idlemesh" / "wheels"
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == cache_folder({})


def test_a_machine_without_tools_is_told_what_to_install() -> None:
    with pytest.raises(SetUpError, match=r"a C\+\+ compiler and cmake and make\.\nDebian.*apt install") as said:
        compiler_for({}, find=nothing_installed)
    assert "brew install cmake" in str(said.value)


def test_a_wheel_in_the_cache_is_used_without_building(tmp_path: Path) -> None:
    wheel = LlamaWheel(REQUIREMENT, {"XDG_CACHE_HOME": str(tmp_path)})
    file = tmp_path / "idlemesh" / "wheels" / wheel.key / "llama_cpp_python-0.3.36-py3-none-any.whl"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert wheel.path(pip=["no-such-command"], log=tmp_path / "log") == file


def test_a_build_that_was_killed_leaves_no_wheel_behind(tmp_path: Path) -> None:
    wheel = LlamaWheel(REQUIREMENT, {"XDG_CACHE_HOME": str(tmp_path)})
    half = wheel.cache / f"{wheel.key}.building" / "llama_cpp_python-0.3.36-py3-none-any.whl"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half of it")
    assert wheel.kept() is None
