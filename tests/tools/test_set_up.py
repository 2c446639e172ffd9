"""When `.venv` is left alone, added to, or made anew."""

import shutil
import sys
from pathlib import Path

import pytest

from tools.commands import SetUpError
from tools.set_up import BUILD_LOCK, DEV_LOCK, RUN_LOCK, Environment, check_headers

ROOT = Path(__file__).parents[2]
SOURCE, MODULE = "verify/drawing.cpp", "verify/drawing.of-some-python.so"


class Recorded(Environment):
    """An environment that notes its steps instead of taking minutes for them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, {"XDG_CACHE_HOME": str(root / "cache")})
        self.steps: list[str] = []
        self.fails = False

    def create(self) -> None:
        self.steps.append("create")
        self.folder.mkdir(exist_ok=True)

    def install(self, dev: bool) -> None:
        self.steps.append("install dev" if dev else "install")
        if self.fails:
            raise KeyboardInterrupt

    def compile(self) -> None:
        self.steps.append("compile")
        (self.root / MODULE).touch()
        if self.fails:
            raise KeyboardInterrupt


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", BUILD_LOCK, RUN_LOCK, DEV_LOCK):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / SOURCE).parent.mkdir()
    shutil.copy(ROOT / SOURCE, tmp_path / SOURCE)
    return tmp_path


def steps(clone: Path, dev: bool = False) -> list[str]:
    environment = Recorded(clone)
    environment.set_up(dev)
    return environment.steps


def interrupt(clone: Path, dev: bool = False) -> None:
    environment = Recorded(clone)
    environment.fails = True
    with pytest.raises(KeyboardInterrupt):
        environment.set_up(dev)


def test_a_new_clone_is_set_up_and_the_second_time_left_alone(clone: Path) -> None:
    assert steps(clone) == ["create", "install", "compile"]
    assert steps(clone) == []


def test_the_tools_of_the_tests_are_added_to_what_is_there(clone: Path) -> None:
    steps(clone)
    assert steps(clone, dev=True) == ["install dev", "compile"]
    assert steps(clone, dev=False) == []


def test_an_interrupted_set_up_starts_over(clone: Path) -> None:
    interrupt(clone)
    assert steps(clone) == ["create", "install", "compile"]


def test_an_interrupted_addition_starts_over(clone: Path) -> None:
    steps(clone)
    interrupt(clone, dev=True)
    assert steps(clone) == ["create", "install", "compile"]


def test_a_changed_lock_makes_a_new_environment(clone: Path) -> None:
    steps(clone)
    with (clone / RUN_LOCK).open("a") as lock:
        lock.write("# changed\n")
    assert steps(clone) == ["create", "install", "compile"]


def test_changed_code_is_compiled_anew(clone: Path) -> None:
    steps(clone)
    with (clone / SOURCE).open("a") as source:
        source.write("// changed")
    assert steps(clone) == ["compile"]
    assert steps(clone) == []


def test_an_interrupted_compilation_is_done_again_even_if_the_code_is_as_before(clone: Path) -> None:
    steps(clone)
    before = (clone / SOURCE).read_text()
    (clone / SOURCE).write_text(before + "// changed")
    interrupt(clone)
    (clone / SOURCE).write_text(before)
    assert steps(clone) == ["compile"]


def test_what_was_compiled_and_is_gone_is_compiled_anew(clone: Path) -> None:
    steps(clone, dev=True)
    (clone / MODULE).unlink()
    assert steps(clone) == ["compile"]
    assert steps(clone, dev=True) == []


def test_a_python_without_header_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_headers()
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(SetUpError, match="python3-dev"):
        check_headers()


def test_a_changed_setting_of_a_linter_changes_nothing(clone: Path) -> None:
    steps(clone)
    with (clone / "pyproject.toml").open("a") as project:
        project.write("\n[tool.another]\nsetting = 1\n")
    assert steps(clone) == []


def test_a_moved_clone_is_set_up_again(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    steps(clone)
    moved = clone.rename(tmp_path_factory.mktemp("elsewhere") / "clone")
    assert steps(moved) == ["create", "install", "compile"]


def test_a_damaged_mark_makes_a_new_environment(clone: Path) -> None:
    steps(clone)
    (clone / ".venv" / "set-up.json").write_text("{")
    assert steps(clone) == ["create", "install", "compile"]


def test_a_working_environment_of_the_users_own_is_added_to_and_never_replaced(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert steps(clone) == ["install", "compile"]
    assert steps(clone) == []
    with (clone / RUN_LOCK).open("a") as lock:
        lock.write("# changed\n")
    interrupt(clone)
    assert steps(clone) == ["install", "compile"]


def test_a_broken_environment_is_replaced(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    assert steps(clone) == ["create", "install", "compile"]
