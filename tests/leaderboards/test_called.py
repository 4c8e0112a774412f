"""A configuration with a name of its own: in tables, legends, comparisons; and commands that are printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import Factory

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.cli.main import cli, invoke
from harness.data.images import write_index
from harness.data.sets.own import register
from harness.recipes.names import configuration_name, run_command
from harness.recipes.resolving import parse_overrides
from leaderboards.judge.comparison import compare
from leaderboards.plots.drawing import entries_of
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.tables import leaderboard
from leaderboards.write import listings
from leaderboards.write.columns import recipe_text

SPEC = {"split": "val", "protocol": "single"}
SEVEN = {"crop": 48, "optimiser.lr": 0.02, "batch.per_group": 4}


def resolved(factory: Factory, **values: object):
    return factory.resolved(evaluation=[SPEC], **values)


def called(factory: Factory, name: str, overrides: dict, crop: int) -> None:
    recipe = factory.resolved(evaluation=[SPEC], crop=crop)
    factory.record(recipe, overrides=overrides, quality=0.5, called=name)


def test_a_name_stands_in_tables_and_legends_in_place_of_the_overrides(factory: Factory) -> None:
    factory.record(resolved(factory), quality=0.6)
    called(factory, "mine", SEVEN, 48)
    rows = leaderboard(gather_records(factory.store), resamples=0)
    texts = {recipe_text(row) for row in rows}
    assert texts == {"agmm/mini-point", "agmm/mini-point (mine)"}
    assert any(entry.label.endswith("(mine)") for entry in entries_of(rows).values())


def test_one_name_for_two_configurations_is_told_apart(factory: Factory) -> None:
    called(factory, "mine", {"crop": 48}, 48)
    called(factory, "mine", {"crop": 56}, 56)
    rows = leaderboard(gather_records(factory.store), resamples=0)
    assert {recipe_text(row) for row in rows if row.n} == {
        "agmm/mini-point (mine: crop=48)",
        "agmm/mini-point (mine: crop=56)",
    }


def test_comparisons_take_names_and_overrides(factory: Factory) -> None:
    factory.record(resolved(factory), quality=0.6)
    called(factory, "mine", SEVEN, 48)
    frame = gather_records(factory.store)
    by_name = compare(frame, {}, "agmm/mini-point", "agmm/mini-point@mine")
    assert by_name[0].b.overrides == "mine"
    assert "(mine)" in listings.comparison(by_name)
    by_values = compare(frame, {}, "agmm/mini-point", "agmm/mini-point", overrides=SEVEN)
    assert {by_values[0].a.overrides, by_values[0].b.overrides} == {"mine"}
    with pytest.raises(UserError, match="with these values") as caught:
        compare(frame, {}, "agmm/mini-point", "agmm/mini-point", overrides={"crop": 40})
    assert "mine; seed 0" in str(caught.value)


@pytest.mark.parametrize(("text", "overrides"), [("mine", {}), (" \n", SEVEN), ("x" * 61, SEVEN)])
def test_a_name_that_names_nothing_is_refused(text: str, overrides: dict) -> None:
    with pytest.raises(UserError, match="name"):
        configuration_name(text, overrides)
    assert configuration_name("my own", SEVEN) == "my own"


def test_printed_commands_carry_overrides_and_the_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(DATASETS._registered)
    try:
        place = tmp_path / "two words"
        write_index(place / "images" / "a.png", np.zeros((8, 8), np.uint8))
        (place / "train.txt").write_text("a\n")
        (place / "val.txt").write_text("a\n")
        names = '["a", "b", "c", "d", "e", "f", "g"]'
        (place / "dataset.toml").write_text(f"classes = {names}\n")
        register([f"birds={place}"])
        overrides = parse_overrides(["dataset=birds", "crop=48"])
        command = run_command("full/mini-full", overrides, "--seed 1")
        assert command.startswith(
            "wsss run full/mini-full --set dataset=birds --set crop=48 --seed 1 --data-root "
        )
        assert f"'birds={place / 'dataset.toml'}'" in command
        root = ["--data-root", f"birds={place}", "--results", str(tmp_path / "none")]
        sets = ["--set", "dataset=birds", "--set", "crop=48"]
        assert (
            invoke(cli, ["predict", "full/mini-full", str(place), "--out", str(tmp_path / "o"), *sets, *root])
            == 2
        )
        assert (
            "wsss run full/mini-full --set dataset=birds --set crop=48 --data-root" in capsys.readouterr().err
        )
        assert invoke(cli, ["show", "full/mini-full", *sets, *root[:2]]) == 0
        assert '"birds"' in capsys.readouterr().out
    finally:
        DATASETS._registered.clear()
        DATASETS._registered.update(before)
