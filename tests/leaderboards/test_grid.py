"""Ablation grids: values, names of rows, tables; and verbs that take the names."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Factory

from harness.basics.errors import UserError
from harness.recipes.given import given as targets
from harness.recipes.given import one
from harness.recipes.grids import parse_grid
from harness.recipes.resolving import parse_overrides, resolve
from harness.recipes.row_names import comma_parts, row_name, row_overrides, row_parts, row_stem, values_text
from harness.records.called import called_rows
from harness.records.records import Store
from harness.running.trials.execution import plan
from leaderboards.judge.claims import judge
from leaderboards.judge.comparison import compare
from leaderboards.judge.statements import read_claims, validate_claims
from leaderboards.rows.choosing import picked_rows, row_text
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.pivot import cells_of, pivots
from leaderboards.rows.tables import leaderboard
from leaderboards.write.columns import recipe_text
from leaderboards.write.pivots import pivot_listing, pivot_markdown
from tests.runs import wsss

RECIPE = "agmm/mini-scribble"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,4", ["1", "2", "4"]),
        ("[48, 64],[64,64]", ["[48, 64]", "[64,64]"]),
        ('"a,b","c"', ['"a,b"', '"c"']),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a\\",b",c', ['"a\\",b"', "c"]),
        ("{a = 1, b = 2}, {a = 3}", ["{a = 1, b = 2}", "{a = 3}"]),
        ('["x,y", "z"]', ['["x,y", "z"]']),
        ("it's,here", ["it's", "here"]),
        ("", [""]),
    ],
)
def test_commas_inside_of_quotes_and_brackets_part_nothing(text: str, parts: list[str]) -> None:
    assert comma_parts(text) == parts


@pytest.mark.parametrize("text", ["[1,2", "1]", '"a,b', "(1,2", "[1,2)"])
def test_what_is_not_closed_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        comma_parts(text)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["config.a", "labels_from", "crop", "x"]),
        st.one_of(
            st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12),
            st.text("a,=()[]{}'\" \\1", max_size=8).map(str.strip),
            st.integers(-100, 100),
            st.booleans(),
            st.lists(st.text("ab,'", max_size=3), max_size=3),
        ),
        min_size=1,
    )
)
def test_the_name_of_a_row_says_its_values(overrides: dict) -> None:
    parts = row_parts(row_name(RECIPE, overrides))
    assert parts is not None
    assert parts[0] == RECIPE
    assert row_overrides(parts[1]) == parse_overrides([f"{k}={json.dumps(v)}" for k, v in overrides.items()])


def test_a_grid_has_every_combination_of_typed_values() -> None:
    grid = parse_grid(RECIPE, ["crop=48,[64, 48]", "optimiser.lr=0.01,0.02", "schedule.steps=30"])
    assert [values_text(point) for point in grid.points] == [
        "crop=48, optimiser.lr=0.01, schedule.steps=30",
        "crop=48, optimiser.lr=0.02, schedule.steps=30",
        "crop=[64, 48], optimiser.lr=0.01, schedule.steps=30",
        "crop=[64, 48], optimiser.lr=0.02, schedule.steps=30",
    ]
    assert resolve(grid.recipe, grid.points[-1]).recipe.crop_size == (64, 48)


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["crop=48"], "no key has several values"),
        (["crop=48,,64"], "a value between two commas is missing"),
        (["crop=48,64", "crop=80,96"], "has values twice"),
        (["crop=48,64", "crop=80"], "has one value, and several"),
        (["crop=48,48"], "two points are the same configuration"),
        (["crop=48,[48, 48]"], "two points are the same configuration"),
        (["optimiser.lr=0.010,0.01"], "two points are the same configuration"),
        (["crop=48,words"], "crop"),
        (["crops=48,64"], "crops"),
        (["crop=" + ",".join(map(str, range(8, 309))), "seedy=" + ",".join("a" * 50)], "more than 10,000"),
        (["schedule.steps=30,40", "schedule.epochs=1,2"], "cannot both be set"),
        (["crop=[48,64"], "is missing"),
    ],
)
def test_a_grid_that_means_nothing_is_refused_before_training(
    sets: list[str], problem: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wsss("grid", RECIPE, *(part for text in sets for part in ("--set", text)), "--local") == 2
    assert problem in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "results").exists()


def fill(factory: Factory) -> None:
    for crop, quality in ((48, 0.5), (64, 0.7)):
        for lr in (0.01, 0.02):
            values = {"crop": crop, "optimiser.lr": lr}
            own = resolve(RECIPE, values)
            for seed in range(3 if lr == 0.01 else 1):
                factory.record(own, seed, quality=quality, overrides=values)


def test_a_pivot_has_figures_intervals_and_holes(factory: Factory) -> None:
    fill(factory)
    frame, recipes = gather_records(factory.store), {RECIPE: resolve(RECIPE)}
    grid = parse_grid(RECIPE, ["optimiser.lr=0.01,0.02,0.03", "crop=48,64"])
    (name,) = {e.name for e in resolve(RECIPE).recipe.evaluation[:1]}
    cells = cells_of(frame, grid, recipes, name, resamples=50)
    assert [None if c.row is None else c.row.n for c in cells] == [3, 3, 1, 1, None, None]
    (table,) = pivots(grid, cells)
    assert (table.down, table.across, table.heads) == ("optimiser.lr", "crop", ("48", "64"))
    text = pivot_listing([table], "x", 3)
    row = cells[1].row
    assert row is not None
    assert f"{row.mean:.2f} ± {row.std:.2f}" in text
    assert f"[{row.low:.2f}, {row.high:.2f}]" in text
    assert "one seed" in text
    best = max(c.row.mean for c in cells if c.row is not None)
    assert f"**{best:.2f}" in pivot_markdown([table], "x", 3)


def test_further_axes_have_a_table_for_each_of_their_values(factory: Factory) -> None:
    fill(factory)
    grid = parse_grid(
        RECIPE, ["crop=48,64", "optimiser.lr=0.01,0.02", "optimiser.momentum=0.9,0.8", "schedule.power=1,2"]
    )
    cells = cells_of(gather_records(factory.store), grid, {}, "val-single", resamples=0)
    assert [t.title for t in pivots(grid, cells)] == [
        f"optimiser.momentum={m}, schedule.power={p}" for m in (0.9, 0.8) for p in (1, 2)
    ]


def test_a_value_that_is_the_recipes_own_finds_the_record_of_the_recipe(factory: Factory) -> None:
    own = resolve(RECIPE)
    factory.record(own)
    grid = parse_grid(RECIPE, [f"optimiser.lr={own.recipe.optimiser.lr},0.5"])
    first, second = cells_of(gather_records(factory.store), grid, {}, own.recipe.evaluation[0].name, 0)
    assert first.row is not None
    assert second.row is None


def test_compare_and_claims_take_the_printed_name_of_a_row(factory: Factory, tmp_path: Path) -> None:
    fill(factory)
    frame = gather_records(factory.store)
    names = sorted({recipe_text(row) for row in leaderboard(frame, {}, resamples=0)})
    low, high = names[0], names[2]
    assert low == f"{RECIPE} (crop=48, optimiser.lr=0.01)"
    found = compare(frame, {}, high, low, resamples=50, permutations=9)
    assert found[0].judged.difference > 0
    turned = f"{RECIPE} (optimiser.lr=1e-2,crop=48)"  # the same values, written otherwise
    again = compare(frame, {}, high, turned, resamples=50, permutations=9)
    assert again[0].judged.difference == found[0].judged.difference
    with pytest.raises(UserError, match=r"no standing record .* with these values"):
        compare(frame, {}, high, f"{RECIPE} (crop=80)")
    file = tmp_path / "agmm.toml"
    file.write_text(
        f'[c]\nstatement = "x."\n[[c.comparisons]]\nbetter = "{high}"\nworse = "{turned}"\n'
        f'[[c.comparisons]]\nbetter = "{high}"\nworse = "{RECIPE} (crop=80)"\n'
    )
    known = read_claims([file])
    assert validate_claims({RECIPE: resolve(RECIPE)}, known) == []
    first, second = judge(frame, {RECIPE: resolve(RECIPE)}, known=known, resamples=50, permutations=9)
    assert first.difference == found[0].judged.difference
    assert second.verdict == "not run"
    words = shlex.split(second.command)
    assert targets(words[2])[0].overrides == {"crop": 80}  # the command runs what is missing
    file.write_text(file.read_text().replace("crop=80", "crop=tall"))
    assert "crop" in validate_claims({RECIPE: resolve(RECIPE)}, read_claims([file]))[0]


def test_plots_take_the_printed_name_of_a_row(factory: Factory, tmp_path: Path, capsys) -> None:
    fill(factory)
    factory.record(resolve("pce/mini-scribble"))
    rows = leaderboard(gather_records(factory.store), {}, resamples=0)
    names = ["pce/*", f"{RECIPE} (optimiser.lr=1e-2, crop=48)"]
    texts = {recipe_text(row) for row in picked_rows(rows, names)}
    assert texts == {f"{RECIPE} (crop=48, optimiser.lr=0.01)", "pce/mini-scribble"}
    assert len(picked_rows(rows, [RECIPE])) == 4
    where = ["--results", factory.store.root, "--out", tmp_path / "out"]
    assert wsss("plot", "--recipe", f"{RECIPE} (crop=49)", *where) == 2
    assert "no row is called" in capsys.readouterr().err


def test_verbs_that_take_a_recipe_take_the_name_of_a_row(capsys) -> None:
    asked = one(f"{RECIPE} (crop=48, optimiser.lr=0.5)", {"crop": 64})
    assert (asked.name, asked.overrides) == (RECIPE, {"optimiser.lr": 0.5, "crop": 64})
    assert wsss("show", f"{RECIPE} (crop=[48, 40])", "--json") == 0
    assert "[48,40]" in capsys.readouterr().out.replace(" ", "").replace("\n", "")
    with pytest.raises(UserError, match="what a configuration was called"):
        one(f"{RECIPE} (mine)")


NAMED = "pce/mini-scribble"


@pytest.fixture
def named(factory: Factory) -> Path:
    """A store with rows that somebody has named, one name twice; they were not trained."""
    factory.record(resolve(NAMED))
    for called, overrides in (
        ("mine, too", {"crop": 48}),
        ("lr=big", {"optimiser.lr": 0.5}),
        ("both", {"crop": 40}),
        ("both", {"crop": [40, 32]}),
        ("", {"crop": 64}),
    ):
        factory.record(resolve(NAMED, overrides), overrides=overrides, called=called)
    return factory.store.root


ROW = "the row"
HERE = ["--device", "cpu"]
VERBS = {
    "run": [ROW, "--dry-run", "--seed", 0, "--local", *HERE],
    "evaluate": [ROW, *HERE],
    "predict": [ROW, "pictures", *HERE],
    "export": [ROW, "--out", "maps", *HERE],
    "curve": [ROW, *HERE],
    "search": [ROW, "--local", *HERE],
    "tune": [ROW, "--local", *HERE],
    "grid": [ROW, "--set", "optimiser.weight_decay=0.1,0.2", "--only-tables", *HERE],
    "pack": ["all.wsss", "--made-by", "Ada", "--recipe", ROW],
    "plot": ["--kind", "seeds", "--format", "png", "--recipe", ROW],
    "leaderboard": ["--recipe", ROW],
    "report": ["--no-plots", "--recipe", ROW],
    "compare": [NAMED, ROW],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_name_of_a_row_gets_the_nearest_ones(
    verb: str, named: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"{NAMED} (mine, tow)" if word == ROW else word for word in VERBS[verb]]
    assert wsss(verb, *words, "--results", named) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"'{NAMED} (mine, tow)'" in error
    assert f"did you mean '{NAMED} (mine, too)'" in error
    assert not Path("reports").exists()


def test_rows_that_were_named_are_found_by_their_printed_names(
    named: Path, small: Path, tmp_path, capsys
) -> None:
    known = called_rows(Store(named))
    for text, overrides, label in (
        ("mine, too", {"crop": 48}, "mine, too"),
        ("lr=big", {"optimiser.lr": 0.5}, "lr=big"),  # looks like values, and is none
        ("both: crop=40", {"crop": 40}, "both"),
        ("both: crop=[40, 32]", {"crop": [40, 32]}, "both"),
        ("crop=64", {"crop": 64}, ""),
        ("mine, too, config.ignored=1", {"crop": 48, "config.ignored": 1}, "mine, too"),
    ):
        found = one(f"{NAMED} ({text})", None, known)
        assert (found.overrides, found.called) == (overrides, label)
    with pytest.raises(UserError, match="no row is called"):
        one(f"{NAMED} (both)", None, known)  # which of the two?
    printed = {row_text(row) for row in leaderboard(gather_records(Store(named)), resamples=0)}
    assert {f"{NAMED} ({text})" for text in ("mine, too", "lr=big", "both: crop=40", "crop=64")} < printed
    for row in (NAMED, f"{NAMED} (both: crop=[40, 32])", f"{NAMED} (mine, too)"):
        assert wsss("pack", tmp_path / "one.wsss", "--made-by", "A", "--recipe", row, "--results", named) == 0
        assert f"{6 if row == NAMED else 1} records in" in capsys.readouterr().out
    written = ["--recipe", f"{NAMED} (crop=6.4e1)", "--recipe", f"{NAMED} (lr=big)", "--results", named]
    assert wsss("leaderboard", *written, "--out", tmp_path / "out") == 0
    lines = (tmp_path / "out" / "leaderboard.csv").read_text().splitlines()
    assert len(lines) == 3
    (trial,) = plan([f"{NAMED} (mine, too)"], [3], {}, Store(named))
    assert str(trial) == f"{NAMED}@mine, too seed 3"


def test_a_seed_that_is_named_twice_is_one(factory: Factory, tmp_path: Path, capsys) -> None:
    for crop in (48, 64):
        for seed in (0, 1):
            factory.record(resolve(NAMED, {"crop": crop}), seed, overrides={"crop": crop})
    grid = ["grid", NAMED, "--set", "crop=48,64", "--only-tables", "--seed", 0, "--seed", 1, "--seed", 1]
    assert wsss(*grid, "--results", factory.store.root, "--out", tmp_path, "--device", "cpu") == 0
    assert "n = 2" not in capsys.readouterr().out  # which says that one is missing


def test_curves_of_two_rows_have_files_of_their_own() -> None:
    plain, one, other = (row_stem(RECIPE, values) for values in ({}, {"crop": 48}, {"crop": 64}))
    assert plain == "agmm-mini-scribble"
    assert len({plain, one, other}) == 3


def test_a_grid_runs_and_goes_on(small: Path, tmp_path: Path, capsys) -> None:
    arguments = [
        "grid", "pce/mini-scribble", "--set", "crop=32,40", "--set", "batch.per_group=4", "--seeds", "1",
        "--set", "schedule.steps=2,3", "--local", "--data-root", small, "--results", tmp_path / "results",
        "--out", tmp_path / "reports", "--device", "cpu", "--set", "weights=none",
    ]  # fmt: skip
    assert wsss(*arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.count("one seed") == 4
    assert len(list(Store(tmp_path / "results").records())) == 4
    assert wsss(*arguments) == 0
    again = capsys.readouterr()
    assert again.err.count("kept") >= 4
    assert wsss(*arguments, "--only-tables", "--json") == 0
    lines = json.loads(capsys.readouterr().out)
    assert {line["crop"] for line in lines} == {"32", "40"}
    assert all(line["low"] <= line["mean"] <= line["high"] for line in lines)
    assert (tmp_path / "reports" / "grid-pce-mini-scribble.csv").read_text().count("\n") == 1 + len(lines)
