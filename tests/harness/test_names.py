"""`harness`, `methods`, `leaderboards`: folders of these names elsewhere are not taken for ours."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
import sysconfig
import venv
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from installed import write

import wsss_bench
from harness.basics import registry
from harness.basics.errors import UserError
from harness.basics.registry import METHODS, RECIPE_PACKAGES
from harness.data.parallel import ordered_map

#: Folders and a module of a research repository, with the names of ours.
DECOYS = {f"{name}/__init__.py": "raise SystemExit('not ours')" for name in ("harness", "methods")}
DECOYS["leaderboards.py"] = "raise SystemExit('not ours')"
#: What workers of Ray would find where the user stands, and the driver would not.
LOCAL = {"timm/__init__.py": "raise SystemExit('vendored')", "random.py": "raise SystemExit('mine')"}


@pytest.fixture
def decoys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the decoys, in front of everything."""
    write(tmp_path, DECOYS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return tmp_path


def test_names_of_ours_are_found_beside_us_and_all_others_as_ever(decoys: Path) -> None:
    write(decoys, {"another.py": ""})
    for name in wsss_bench.OURS:
        spec = find_spec(name)
        assert spec is not None
        assert Path(str(spec.origin)).is_relative_to(wsss_bench.HOME)
    other = find_spec("another")
    assert other is not None
    assert Path(str(other.origin)) == decoys / "another.py"


def test_the_door_is_ours_wherever_another_module_has_its_name(decoys: Path) -> None:
    write(decoys, {"wsss.py": "raise SystemExit('not ours')"})
    spec = find_spec(wsss_bench.DOOR)
    assert spec is not None
    assert Path(str(spec.origin)) == wsss_bench.HOME / "wsss.py"


@pytest.mark.parametrize("module", ["wsss", "wsss_bench"])
def test_the_command_can_be_run_as_a_module(module: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [module, "list", "suites"])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(wsss_bench.HOME / f"{module}.py"), run_name="__main__")
    assert not ended.value.code
    assert "mini-quick" in capsys.readouterr().out


def test_the_finder_is_there_once() -> None:
    importlib.reload(importlib.import_module("harness"))
    wsss_bench.prefer_ours()
    assert [type(finder).__name__ for finder in sys.meta_path].count("_Ours") == 1


def test_a_name_that_was_taken_first_is_said_with_its_file(
    decoys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "methods"]:
        monkeypatch.delitem(sys.modules, name)
    theirs = ModuleType("methods")
    theirs.__file__ = str(decoys / "methods" / "__init__.py")
    monkeypatch.setitem(sys.modules, "methods", theirs)
    registry.refresh()
    try:
        assert wsss_bench.taken() == {"methods": theirs.__file__}
        for known, name in ((METHODS, "pce"), (RECIPE_PACKAGES, "methods")):
            with pytest.raises(UserError) as caught:
                known.get(name)
            assert "another module of the name 'methods'" in caught.value.problem
            assert caught.value.where == theirs.__file__
            assert "import harness before it" in str(caught.value.remedy)
    finally:
        registry.refresh()


def test_a_worker_of_ray_has_the_drivers_path(
    decoys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(decoys)
    environment = wsss_bench.worker_environment()
    assert environment["env_vars"] == {wsss_bench.ADDED: ""}, "the driver has the folder too"
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(decoys)])
    found = wsss_bench.worker_environment()["env_vars"]
    assert found == {wsss_bench.ADDED: str(decoys)}
    # What a worker does: the hook, then Ray puts the folder in front.
    monkeypatch.setenv(wsss_bench.ADDED, str(decoys))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    wsss_bench.in_worker()
    sys.path.insert(0, str(decoys))
    assert find_spec("a_module_that_nobody_has") is None
    assert str(decoys) not in sys.path


@pytest.mark.faults
def test_processes_that_are_spawned_find_ours(decoys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.parallel._WORTH_PROCESSES", 1)
    monkeypatch.setenv("PYTHONPATH", str(decoys))
    assert list(ordered_map(_home, ["methods"], workers=1, kind="processes", what="")) == [
        str(wsss_bench.HOME / "methods")
    ]


def _home(name: str) -> str:
    return str(Path(str(importlib.import_module(name).__file__)).parent)


# --- the wheel ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the installed wheel, in an environment of its own; what it needs is borrowed."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="install the group `test`").WheelBuilder
    place = tmp_path_factory.mktemp("wheel")
    (built,) = builder(str(wsss_bench.HOME)).build(directory=str(place), versions=["standard"])
    venv.create(place / "venv", symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place / "venv")}))
    with zipfile.ZipFile(built) as packed:
        packed.extractall(site)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    entries = ConfigParser()
    entries.read(next(site.glob("wsss_bench-*.dist-info")) / "entry_points.txt")
    module, _, function = entries["console_scripts"]["wsss"].partition(":")
    command = place / "venv" / "bin" / "wsss"
    command.write_text(f"#!{place}/venv/bin/python\nfrom {module} import {function}\n"
                       f"if __name__ == '__main__':\n    {function}()\n")  # fmt: skip
    command.chmod(0o755)
    return command


@pytest.mark.faults
@pytest.mark.parametrize("where", ["empty", "decoys", "decoys under Ray"])
def test_the_installed_wheel_runs_wherever_the_user_stands(
    wheel: Path, cache: Path, small: Path, tmp_path: Path, where: str
) -> None:
    stand, paths = tmp_path / "stand", tmp_path / "paths"
    stand.mkdir()
    paths.mkdir()
    if where != "empty":
        write(stand, {**DECOYS, **LOCAL})
        write(paths, DECOYS)
    sizes = ["schedule.steps=2", "batch.groups=2", "batch.per_group=2", "crop=32"]
    words = ["run", "pce/mini-scribble", "--seed", "0", "--device", "cpu", "--data-root", str(small)]
    words += [word for size in sizes for word in ("--set", size)]
    ray = ["--workers", "1", "--processes-per-trial", "2", "--cpus-per-trial", "1"]
    words += ray if "Ray" in where else ["--local"]
    environment = os.environ | {"PYTHONPATH": str(paths), "WSSS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment["RAY_worker_niceness"] = "0"  # else a machine with other work on it lets them starve
    done = subprocess.run([wheel, *words], cwd=stand, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((stand / "results").rglob("record.json"))) == 1
