"""The code of other packages is in the record: changed code is said, kept apart, trained anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from installed import ENTRIES, FILES, METHOD, RECIPES, again, forget, installed, write
from runs import wsss

from harness.basics import interruption
from harness.basics.registry import METHODS
from harness.recipes import foreign
from harness.recipes.resolving import all_recipes, resolve
from harness.records.aside import set_aside
from harness.records.records import Store
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.tables import leaderboard

RECIPE = "mine/mini-tiny"


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A package with a method and recipes."""
    with installed(tmp_path / "site", "their-methods", FILES, ENTRIES) as place:
        yield place


def changed(place: Path, source: str = METHOD + "\n        lucky = 7\n") -> None:
    """The method's code is another one, in a process that has not imported it before."""
    write(place, {"mine/method.py": source})
    forget(place)


def packages() -> list[dict]:
    return foreign.packages_of(resolve(RECIPE))


def test_a_recipe_of_ours_brings_no_package() -> None:
    assert foreign.packages_of(resolve("pce/mini-scribble")) == []
    assert foreign.recorded_packages(resolve("pce/mini-scribble")) == {}


def test_a_package_is_described_with_all_its_modules(mine: Path) -> None:
    (found,) = packages()
    assert found["module"] == "mine"
    assert found["brings"] == ["method mine", "recipes mine"]
    assert (found["distribution"], found["version"]) == ("their-methods", "1.0")
    assert found["commit"] is None, "no checkout"
    write(mine, {"mine/unused.py": "x = 1"})
    again()
    (other,) = packages()
    assert other["sha256"] != found["sha256"], "of a module that is not imported too"
    (mine / "mine/unused.py").unlink()
    write(mine, {"mine/__pycache__/a.py": "", "mine/.hidden/a.py": "", "mine/notes.txt": ""})
    again()
    assert packages() == [found]


def test_a_checkout_is_named_by_its_commit_and_changes(mine: Path) -> None:
    def git(*words: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", mine, *name, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", "mine")
    git("commit", "-qm", "first")
    again()
    (clean,) = packages()
    assert (clean["commit"], clean["dirty"]) == (git("rev-parse", "HEAD"), False)
    assert foreign.text([clean]) == f"their-methods 1.0 ({clean['commit'][:9]})"
    write(mine, {"mine/new.py": ""})
    again()
    (dirty,) = packages()
    assert dirty["dirty"], "a file that was never committed is a change"
    assert "+ changes, sources" in foreign.text([dirty])


def test_a_helper_outside_the_package_and_the_home_of_a_base_count_too(mine: Path) -> None:
    write(
        mine,
        {
            "helper.py": "def scale(x): return x",
            "mine/method.py": "import helper\nfrom their_base import Base\nclass Mine(Base): title = 'M'",
            "their_base/__init__.py": "from methods.baselines import PartialCrossEntropy as P\n"
            "class Base(P): pass\n",
        },
    )
    forget(mine)
    assert [p["module"] for p in packages()] == ["helper", "mine", "their_base"]
    before = foreign.code_identity(packages())
    write(mine, {"helper.py": "def scale(x): return 2 * x"})
    forget(mine)
    assert foreign.code_identity(packages()) != before


def test_a_data_set_of_a_package_is_named(mine: Path) -> None:
    files = {"their_data.py": "from harness.data.sets.mini import Mini\nclass Scenes(Mini): pass\n"}
    with installed(mine.parent / "data", "their-data", files, {"datasets": {"scenes": "their_data:Scenes"}}):
        write(mine, {"mine/recipes/mine.toml": RECIPES + '\n    [mini-data]\n    extends = "mini-tiny"\n'
                     '    dataset = "scenes"\n'})  # fmt: skip
        again()
        found = {p["module"]: p["brings"] for p in foreign.packages_of(resolve("mine/mini-data"))}
    assert found["their_data"] == ["data set scenes"]


def _typed(source: str, name: str = "__main__") -> type:
    """A class as a notebook makes it: no file holds its source."""
    module = ModuleType(name)
    whole = "from methods.baselines import PartialCrossEntropy\n" + source
    exec(compile(whole, "<cell>", "exec"), vars(module))
    return module.Mine  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("class Mine(PartialCrossEntropy):\n    k = 1", "class Mine(PartialCrossEntropy):\n    k = 2"),
        ("class Mine(PartialCrossEntropy):\n    def f(self): return 1",
         "class Mine(PartialCrossEntropy):\n    def f(self): return 2"),
        ("def g(): return 1\nclass Mine(PartialCrossEntropy):\n    def f(self): return g()",
         "def g(): return 2\nclass Mine(PartialCrossEntropy):\n    def f(self): return g()"),
        ("K = 1\nclass Mine(PartialCrossEntropy):\n    def f(self): return K",
         "K = 2\nclass Mine(PartialCrossEntropy):\n    def f(self): return K"),
        ("class Base(PartialCrossEntropy):\n    k = 1\nclass Mine(Base): pass",
         "class Base(PartialCrossEntropy):\n    k = 2\nclass Mine(Base): pass"),
    ],
)  # fmt: skip
def test_a_class_from_a_notebook_is_known_by_its_source(
    monkeypatch: pytest.MonkeyPatch, one: str, other: str
) -> None:
    found = []
    for source in (one, one, other):
        monkeypatch.setitem(METHODS._registered, "pce", _typed(source, "a_notebook"))
        (package,) = foreign.packages_of(resolve("pce/mini-scribble"))
        assert package["module"] == "a_notebook"
        found.append(package["sha256"])
    assert found[0] == found[1] != found[2]


def test_a_bare_module_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"bare_method.py": METHOD})
    monkeypatch.syspath_prepend(tmp_path)
    import bare_method  # type: ignore[import-not-found]

    monkeypatch.setitem(METHODS._registered, "pce", bare_method.Mine)
    (package,) = foreign.packages_of(resolve("pce/mini-scribble"))
    assert (package["module"], package["distribution"]) == ("bare_method", None)
    forget(tmp_path)


# --- runs --------------------------------------------------------------------------------------------


def run(small: Path, results: Path, *words: object) -> int:
    where = ("--local", "--device", "cpu", "--data-root", small, "--results", results)
    return wsss("run", RECIPE, *where, *words)


def test_changed_code_is_said_kept_apart_refused_on_import_and_trained_anew(
    mine: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results, other = tmp_path / "results", tmp_path / "other"
    assert run(small, results, "--seeds", 2) == 0
    first = list(Store(results).records())
    assert [p["module"] for p in first[0].data["code"]["packages"]] == ["mine"]
    capsys.readouterr()
    assert run(small, results, "--seed", 0) == 0
    assert "other code" not in capsys.readouterr().err, "nothing has changed"

    changed(mine)
    assert run(small, results, "--seeds", 3) == 0
    said = capsys.readouterr().err
    assert said.count("trained with other code: their-methods 1.0 (sources") == 2
    assert "--again" in said
    rows = [row for row in leaderboard(gather_records(Store(results)), all_recipes(), resamples=0) if row.n]
    assert [(row.seeds, row.verdict == "stale") for row in rows] == [((2,), False), ((0, 1), True)]
    assert "other code of other packages than in newer records" in rows[1].notes[0]
    assert "their-methods 1.0 (sources" in rows[0].commit
    assert rows[0].commit != rows[1].commit

    shutil.copytree(results, other)
    assert run(small, results, "--seeds", 2, "--again") == 0
    now = list(Store(results).records())
    assert {r.data["code"]["packages"][0]["sha256"] for r in now} == {
        now[2].data["code"]["packages"][0]["sha256"]
    }
    aside = sorted(place.name for place in now[0].path.parent.glob("before-*"))
    assert [name.rpartition("-seed-")[2] for name in sorted(aside)] == ["1", "0"]
    kept = next(now[0].path.parent.glob("before-*-seed-0"))
    assert (kept / "record.json").exists()
    assert (kept / "checkpoint/last.pt").exists()
    (row,) = (row for row in leaderboard(gather_records(Store(results)), all_recipes(), resamples=0) if row.n)
    assert row.seeds == (0, 1, 2)

    # A plain second run trains nothing again, and equal numbers are there already.
    capsys.readouterr()
    assert run(small, results, "--seeds", 3) == 0
    assert "other code" not in capsys.readouterr().err
    assert wsss("import", other, "--results", results) == 0
    assert "0 records imported, 3 were there already" in capsys.readouterr().out


def test_a_run_that_goes_on_with_other_code_says_so(mine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seed-0"
    before = foreign.note_start(folder, resolve(RECIPE))
    assert "begun_with" not in before
    write(folder, {"checkpoint/last.pt": ""})
    changed(mine)
    for _ in range(2):  # interrupted once more
        after = foreign.note_start(folder, resolve(RECIPE))
        assert after["begun_with"] == [before["packages"]]
    assert "begun with their-methods 1.0" in foreign.told_packages({"code": after})
    assert foreign.made_by({"code": after}) != foreign.code_identity(after["packages"])
    changed(mine, METHOD)
    shutil.rmtree(folder / "checkpoint")
    assert "begun_with" not in foreign.note_start(folder, resolve(RECIPE)), "from the start, all by one code"


#: The method of the package, and another state of it that is interrupted after its second step.
STOPPED = (
    METHOD
    + """
        def after_step(self, progress):
            import signal
            super().after_step(progress)
            if progress.step == 1: signal.raise_signal(signal.SIGINT)
"""
)


def test_a_plan_says_which_rows_other_code_has_trained_and_a_run_from_which_step_it_goes_on(
    mine: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    results, longer = tmp_path / "results", ("--set", "schedule.steps=3")

    def plan(*words: object) -> tuple[list[dict], str]:
        capsys.readouterr()
        words = words or ("--seeds", 3)
        assert run(small, results, *longer, "--dry-run", "--json", *words) == 0
        rows = json.loads(capsys.readouterr().out)
        assert run(small, results, *longer, "--dry-run", *words) == 0
        return rows, capsys.readouterr().out

    assert run(small, results, *longer, "--seeds", 1) == 0
    changed(mine, STOPPED)
    assert run(small, results, *longer, "--seed", 1) == 130
    interruption.forget()
    assert all(not row["code"] for row in plan("--seed", 1)[0]), "nothing has changed since it was begun"

    changed(mine)
    rows, shown = plan()
    assert [(r["state"], r["reached"], bool(r["code"])) for r in rows] == [
        ("finished", None, True),
        ("goes on", 2, True),
        ("new", None, False),
    ]
    assert all("trained with other code: their-methods 1.0 (sources" in row["code"] for row in rows[:2])
    assert rows[0]["code"] != rows[1]["code"], "each names the code that trained it"
    assert "finished: other code" in shown
    assert "goes on at 2: other code" in shown
    assert f"{RECIPE} seed 0, finished: trained with other code" in shown
    assert "2 of 3 trials to run" in shown
    assert "--again trains it anew" in shown

    assert run(small, results, *longer, "--seed", 1) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"goes on {RECIPE} seed 1: from step 2 of 3; its steps up to there were trained with other" in said
    assert [r["state"] for r in plan()[0]] == ["finished", "finished", "new"]


def test_a_dry_run_leaves_labels_as_they_are_that_other_code_has_made(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture
) -> None:
    method = METHOD.replace("PartialCrossEntropy", "ClassActivationMap")
    recipes = """
    [mini-tags]
    extends = "cam/mini-image"
    schedule = { steps = 2 }
    batch = { groups = 1, per_group = 4 }
    [mini-stage]
    extends = "pce/mini-image"
    method = "pce"
    labels_from = "mine/mini-tags"
    schedule = { steps = 2 }
    batch = { groups = 1, per_group = 4 }
    """
    files = {**FILES, "mine/method.py": method, "mine/recipes/mine.toml": recipes}
    results = tmp_path / "results"
    where = ("--seed", 0, "--local", "--device", "cpu", "--data-root", small, "--results", results)
    with installed(tmp_path / "site", "their-methods", files, ENTRIES) as place:
        assert wsss("run", "mine/mini-stage", *where) == 0
        changed(place, method + "\n        lucky = 7\n")
        before = {file: file.stat().st_mtime_ns for file in sorted(results.rglob("*"))}
        capsys.readouterr()
        assert wsss("run", "mine/mini-stage", *where, "--dry-run", "--json") == 0
        source, stage = json.loads(capsys.readouterr().out)
        assert {file: file.stat().st_mtime_ns for file in sorted(results.rglob("*"))} == before
    assert (source["state"], bool(source["code"])) == ("finished", True)
    assert (stage["state"], stage["makes"]) == ("waits", "labels")


@pytest.mark.parametrize("uri", [False, True])
def test_what_is_set_aside_is_whole_and_no_record_any_more(tmp_path: Path, uri: bool) -> None:
    root = tmp_path / "results"
    root.mkdir()
    store = Store(root.as_uri() if uri else root, tmp_path / "cache")
    folder = store.folder("mine/mini-tiny", "0" * 12, 0)
    files = {"checkpoint/last.pt": "weights", "pseudo_labels/a/x.png": "png", "history.csv": "step\n"}
    with store.work(folder):
        write(folder, {**files, "record.json": "{}"})
    place = set_aside(store, folder)
    kept = root / place.relative_to(store.root)
    assert {name: (kept / name).read_text() for name in files} == files
    assert (kept / "record.json").exists()
    assert not (root / folder.relative_to(store.root) / "record.json").exists()
    assert list(Store(root.as_uri() if uri else root, tmp_path / "another").records()) == []
    assert list(store.records()) == []


def test_the_modules_of_the_tests_are_left_as_they_were() -> None:
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    "words",
    [
        ["run", RECIPE, "--local", "--device", "cpu"],
        ["evaluate", RECIPE],
        ["export", RECIPE, "--out", "net"],
        ["predict", RECIPE, "a.png", "--out", "seen"],
        ["search", RECIPE],
        ["curve", RECIPE],
    ],
    ids=lambda words: words[0],
)
def test_verbs_name_the_package_that_made_records_and_is_gone(
    words: list[str], orphaned: Path, capsys: pytest.CaptureFixture
) -> None:
    assert wsss(*words, "--results", orphaned) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "made by their-methods 1.0" in said, said
    assert "is not installed: install it again" in said


def test_rows_of_a_package_that_is_gone_stand_with_a_note(orphaned: Path) -> None:
    (row,) = leaderboard(gather_records(Store(orphaned)), {}, resamples=0)
    assert any("their-methods 1.0" in n and "is not installed here" in n for n in row.notes), row.notes


@pytest.fixture(scope="module")
def orphaned(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    """A store with a record of a package that is installed no longer."""
    place = tmp_path_factory.mktemp("orphaned")
    words = ["--local", "--device", "cpu", "--seeds", "1", "--set", "schedule.steps=2", "--data-root", small]
    with installed(place / "site", "their-methods", FILES, ENTRIES):
        assert wsss("run", RECIPE, *words, "--results", place / "results") == 0
    return place / "results"
