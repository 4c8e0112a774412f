"""A recipe file that a command names by path: what it may hold, and that nothing depends on where it lies."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.cli.main import cli, invoke
from harness.recipes.given import given, one
from harness.recipes.resolving import parse_overrides, resolve
from harness.records.records import Store
from harness.running.trials.execution import plan
from tests.runs import wsss

BASE = "pce/mini-scribble"
SINGLE = f"""
extends = "{BASE}"
schedule.steps = 2
crop = 32
batch.per_group = 4
evaluation = []
[optimiser]
lr = 0.01
"""
SEVERAL = f"""
[_short]
extends = "{BASE}"
schedule = {{ epochs = 2 }}
[wide]
extends = "_short"
config = {{ head_width = 40 }}
[low]
extends = ["_short"]
"optimiser.lr" = 0.001
"""
WHOLE = """
[mine]
method = "agmm"
extends = "_shared/mini-deeplab"
supervision = "point"
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_file_is_a_recipe_with_values_over_it_and_a_name(tmp_path: Path) -> None:
    (found,) = given(write(tmp_path, SINGLE))
    assert (found.name, found.called) == (BASE, "mine")
    by_hand = parse_overrides(
        ["schedule.steps=2", "crop=32", "batch.per_group=4", "evaluation=[]", "optimiser.lr=0.01"]
    )
    assert found.overrides == by_hand
    assert resolve(BASE, found.overrides).digest() == resolve(BASE, by_hand).digest()


def test_a_file_of_several_recipes_is_taken_whole_or_by_table(tmp_path: Path) -> None:
    file = write(tmp_path, SEVERAL)
    assert [one.called for one in given(file)] == ["mine:wide", "mine:low"]
    low = one(f"{file}:low")
    recipe = resolve(low.name, low.overrides).recipe
    assert (recipe.schedule.epochs, recipe.schedule.steps, recipe.optimiser.lr) == (2, None, 0.001)
    assert [one.called for one in given(f"{file}:w*")] == ["mine:wide"]
    with pytest.raises(UserError, match="2 recipes") as error:
        one(file)
    assert "mine.toml:wide" in error.value.remedy


def test_a_file_may_start_from_shared_tables_or_from_nothing(tmp_path: Path) -> None:
    shared = one(write(tmp_path, WHOLE))
    usual = resolve("agmm/mini-point")
    assert shared.name == "agmm/file"
    assert resolve(shared.name, shared.overrides).digest() == usual.digest()
    plain = (
        'method = "full"\ndataset = "mini"\nsupervision = "full"\nbackbone = "mini_cnn"\nschedule.steps = 1'
    )
    alone = one(write(tmp_path, plain))
    assert resolve(alone.name, alone.overrides).recipe.method == "full"
    assert given(alone.name, alone.overrides)[0].name == "full/file"  # as printed commands write it


def test_the_command_line_stands_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, SINGLE)
    above = one(file, {"schedule.epochs": 3, "optimiser": {"lr": 0.5}})
    recipe = resolve(above.name, above.overrides).recipe
    assert (recipe.schedule.epochs, recipe.schedule.steps, recipe.optimiser.lr) == (3, None, 0.5)
    assert set(above.origins) == {"crop", "batch.per_group", "evaluation"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no recipe"),
        ("crop = [", "TOML"),
        ("crop = 32", "does not say which recipe"),
        ("[optimiser]\nlr = 0.1", "does not say which recipe"),
        ('extends = "pce/mini-scribbl"', "does not exist"),
        ('extends = "other.toml"', "no recipe 'other.toml'"),
        ("extends = 3", "extends"),
        (f'extends = "{BASE}"\ncropp = 3', "unknown key 'cropp'"),
        (f'extends = "{BASE}"\ncrop = "wide"', "crop"),
        (f'extends = "{BASE}"\nmethod = "agmm"', "another one"),
        ('[a]\nextends = "b"\n[b]\nextends = "a"', "extends itself"),
        ('[_a]\nextends = "pce/mini-scribble"', "no recipe"),
        ('method = "nothing"', "nothing"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_file(tmp_path: Path, text: str, said: str, capsys) -> None:
    file = write(tmp_path, text)
    assert wsss("run", file, "--dry-run", "--local") == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "mine.toml" in shown
    assert "remedy" in shown
    assert "Traceback" not in shown


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys) -> None:
    assert wsss("show", tmp_path / "none.toml") == 2
    assert "no such recipe file" in capsys.readouterr().err


def test_a_run_evaluation_and_comparison_find_what_the_file_trained(tmp_path: Path, capsys) -> None:
    file, results = write(tmp_path, SINGLE), tmp_path / "results"
    store = ["--results", results]
    assert wsss("run", file, "--seed", 0, "--local", *store) == 0
    (record,) = Store(results).records()
    assert (record.name, record.data["called"]) == (BASE, "mine")
    moved = file.rename(tmp_path / "else where.toml")
    capsys.readouterr()
    assert wsss("run", moved, "--seed", 0, "--local", *store) == 0  # its values are the same
    assert "kept" in capsys.readouterr().err
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    assert wsss("predict", moved, picture, "--out", tmp_path / "out", *store) == 0
    moved.write_text(SINGLE.replace("0.01", "0.02"))
    assert wsss("evaluate", moved, *store) == 2  # never the numbers of other values
    shown = capsys.readouterr().err
    assert "optimiser.lr=0.01" in shown
    assert wsss("compare", moved, moved, *store) == 2
    assert "no standing record" in capsys.readouterr().err


def test_trials_of_one_recipe_with_other_values_are_other_trials(tmp_path: Path) -> None:
    file = write(tmp_path, SEVERAL)
    trials = plan([str(file), f"{file}:low", BASE], [0, 1], {})
    assert [str(t) for t in trials] == [
        f"{BASE}{called} seed {seed}" for called in ("@mine:wide", "@mine:low", "") for seed in (0, 1)
    ]


def test_show_says_that_a_value_stands_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # a line for each value, however long the path is
    file = write(tmp_path, SINGLE)
    assert invoke(cli, ["show", str(file), "--set", "crop=48"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "mine.toml" in lines["optimiser.lr"]
    assert "command line" in lines["crop"]


def test_values_of_a_file_that_extends_a_recipe_can_be_set_on_another(tmp_path: Path) -> None:
    file = write(tmp_path, SINGLE)
    assert parse_overrides([f"@{file}"]) == one(file).overrides
    assert "extends" in tomllib.loads(file.read_text())
