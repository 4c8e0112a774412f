"""The written leaderboard: same records, same bytes; what a reader must see stands there."""

from __future__ import annotations

import csv
import gc
import io
import re
from pathlib import Path

import pytest
from markdown_tables import rows
from synthetic import Factory

from harness.basics.errors import UserError
from harness.recipes.specs import EvaluationSpec
from harness.records.records import Store
from leaderboards.rows.row import Row
from leaderboards.rows.text import mean_text, number
from leaderboards.write.latex import latex
from leaderboards.write.report import tables_markdown, write_leaderboard


def fill(factory: Factory) -> dict:
    factory.unlabelled = (2,)
    resolved = factory.resolved(
        evaluation=(EvaluationSpec(cells=("agmm-sass-repo/voc-point-val",), tolerance=1.0),), suites=("mini",)
    )
    for seed in range(3):
        factory.record(resolved, seed=seed, absent=(2,), title="AGMM")
    factory.record(factory.resolved("pce/mini-point"), seed=0, quality=0.4, title="Partial | cross-entropy")
    hole = factory.resolved("tel/mini-block", supervision="block", suites=("mini",))
    return {r.name: r for r in (resolved, hole)}


def test_equal_records_give_equal_files(factory: Factory, tmp_path: Path) -> None:
    recipes = fill(factory)
    first = write_leaderboard(factory.store, tmp_path / "a", recipes=recipes)
    second = write_leaderboard(factory.store, tmp_path / "b", recipes=recipes)
    names = ["leaderboard.md", "published.md", "leaderboard.csv", "per_class.csv"]
    names += ["leaderboard.tex", "leaderboard.json"]
    assert [f.name for f in first.files] == names
    for one, other in zip(first.files, second.files, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_what_the_tables_say(factory: Factory, tmp_path: Path) -> None:
    recipes = fill(factory)
    written = write_leaderboard(factory.store, tmp_path, recipes=recipes)
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "Computed from 4 records by wsss-bench" in text
    assert "(one seed)" in text
    assert "67.80 (agmm-sass-repo/voc-point-val)" in text
    assert "left out of the mean: ring" in text
    assert "Partial \\| cross-entropy" in text
    assert "## Not run" in text
    assert "tel/mini-block" in text.partition("## Not run")[2]
    row = next(r for r in written.rows if r.recipe == "agmm/mini-point")
    assert f"{row.mean:.2f} ± {row.std:.2f}" in text
    assert f"{row.low:.2f} to {row.high:.2f}" in text


def test_csv_holds_the_rows(factory: Factory, tmp_path: Path) -> None:
    written = write_leaderboard(factory.store, tmp_path, recipes=fill(factory), formats=["csv"])
    assert [f.name for f in written.files] == ["leaderboard.csv", "per_class.csv"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text(encoding="utf-8"))))
    assert [line["recipe"] for line in lines] == [row.recipe for row in written.rows]
    for line, row in zip(lines, written.rows, strict=True):
        assert line["mean"] == (f"{row.mean:.6f}" if row.n else "")
        assert line["verdict"] == row.verdict
    classes = list(csv.DictReader(io.StringIO((tmp_path / "per_class.csv").read_text(encoding="utf-8"))))
    ring = next(c for c in classes if c["recipe"] == "agmm/mini-point" and c["class"] == "ring")
    assert (ring["n"], ring["mean"], ring["absent_seeds"]) == ("0", "", "3")


def test_one_data_set_only(factory: Factory, tmp_path: Path) -> None:
    recipes = fill(factory)
    factory.record(factory.resolved("agmm/voc-point", dataset="voc2012"))
    written = write_leaderboard(factory.store, tmp_path, recipes=recipes, dataset="voc2012")
    assert {row.dataset for row in written.rows} == {"voc2012"}
    assert "Computed from 1 record by" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_nothing_to_show_says_what_to_do(factory: Factory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wsss run") as caught:
        write_leaderboard(Store(tmp_path / "nowhere"), tmp_path / "out")
    assert "no results folder" in caught.value.problem
    factory.store.root.mkdir()
    with pytest.raises(UserError, match="wsss run") as caught:
        write_leaderboard(factory.store, tmp_path / "out")
    assert "no records" in caught.value.problem
    factory.record()
    with pytest.raises(UserError, match="did you mean 'mini'"):
        write_leaderboard(factory.store, tmp_path / "out", dataset="minni")
    with pytest.raises(UserError, match="unknown format 'pdf'"):
        write_leaderboard(factory.store, tmp_path / "out", formats=["pdf"])
    assert not (tmp_path / "out").exists()


def test_a_hole_of_a_table_with_records_stands_below_it() -> None:
    hole = Row(**_row(recipe="x/missing", verdict="not run"))
    failed = Row(**_row(recipe="x/failed", verdict="not run", notes=("failed seeds 0, 1: it diverged",)))
    scored = Row(**_row(n=1, mean=50.0, verdict="not comparable"))
    text = tables_markdown([scored, hole, failed])
    assert "- not run: x/missing, x/failed: failed seeds 0, 1: it diverged" in text
    assert text.count("| 50.00") == text.count("one seed") == 1


def test_what_nobody_asked_for_is_counted_and_is_no_row(factory: Factory, tmp_path: Path) -> None:
    """Three suites: one whole, one begun by less than half, one that nobody touched."""
    names = {"agmm/mini-a": ("one",), "pce/mini-b": ("one", "other"), "pce/mini-c": ("one",)}
    names |= {f"full/mini-{k}": ("other",) for k in "defg"} | {"cam/voc-h": ()}
    recipes = {name: factory.resolved(name, suites=suites) for name, suites in names.items()}
    for name in ("agmm/mini-a", "pce/mini-b"):
        factory.record(recipes[name])
    written = write_leaderboard(factory.store, tmp_path, recipes=recipes)
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "not run: pce/mini-c" in text
    assert not re.search("full/mini|cam/voc", text)
    assert "5 recipes of other suites have no records" in text
    assert {row.recipe for row in written.rows} == set(names)  # the CSV has them all


def test_a_suite_that_is_named_has_its_recipes_alone(factory: Factory, tmp_path: Path) -> None:
    names = {
        "agmm/mini-a": ("one",),
        "pce/mini-b": ("other",),
        "full/mini-c": ("one",),
        "cam/mini-d": ("one",),
    }
    recipes = {name: factory.resolved(name, suites=suites) for name, suites in names.items()}
    for name in ("agmm/mini-a", "pce/mini-b"):
        factory.record(recipes[name])
    written = write_leaderboard(factory.store, tmp_path, recipes=recipes, suites=["one"])
    assert {row.recipe for row in written.rows} == set(names) - {"pce/mini-b"}
    assert "not run: cam/mini-d, full/mini-c" in written.tables  # asked for by name, though less than half
    assert "Computed from 1 record" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="did you mean 'one'"):
        write_leaderboard(factory.store, tmp_path, recipes=recipes, suites=["on"])


def test_what_all_rows_share_is_said_once_and_the_best_are_marked() -> None:
    why = "the table could not be read"
    rows = [
        Row(**_row(title=t, recipe=f"{t}/r", n=2, mean=m, std=1.0, verdict="not comparable", commit="abc")
            | {"notes": (f"paper-{t}/cell: no published value ({why})", "both say so", *own)})
        for t, m, own in (("a", 50.0, ()), ("b", 60.0, ("b alone",)), ("c", 40.0, ()))
    ]  # fmt: skip
    text = tables_markdown(rows)
    assert text.count("no published value") == 1
    assert f"no published value for paper-a/cell, paper-b/cell, paper-c/cell ({why})" in text
    assert "**60.00 ± 1.00**" in text
    assert "*50.00 ± 1.00*" in text
    for once in ("both say so", "not comparable", "abc"):
        assert text.count(once) == 1
    assert re.search(r"\| b .*\| 1 ", text)
    assert "1. b alone" in text
    printed = latex(rows)
    assert printed.count("o published value") == printed.count("not comparable") == 1
    assert "abc" not in printed


def _row(**values: object) -> dict:
    names = ("dataset", "supervision", "method", "title", "recipe", "backbone", "weights", "weak_label")
    base = dict.fromkeys(names, "x") | {"supervision": "point", "evaluation": "val", "protocol": "single"}
    return base | values


def test_figures() -> None:
    assert number(-1.234, sign=True) == "−1.23"
    assert number(1.5, sign=True) == "+1.50"
    assert number(float("nan")) == "–"
    assert mean_text(Row(**_row(n=1, mean=50.0))) == "50.00 (one seed)"
    assert mean_text(Row(**_row(n=2, mean=50.0, std=1.0))) == "50.00 ± 1.00"
    assert mean_text(Row(**_row(n=0))) == "–"


def test_pseudo_labels_and_cost_have_tables_of_their_own(factory: Factory, tmp_path: Path) -> None:
    cam = factory.resolved(
        "cam/mini-image",
        supervision="image",
        evaluation=(EvaluationSpec(), EvaluationSpec(split="train", output="cam")),
    )
    for seed in range(2):
        factory.record(cam, seed, title="CAM")
    factory.record(factory.resolved("agmm/mini-point"), title="AGMM")
    write_leaderboard(factory.store, tmp_path)
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Miniature scenes, point supervision",
        "Miniature scenes, image supervision",
        "Miniature scenes, image supervision: pseudo labels",
        "Miniature scenes: cost",
    ]
    labels, cost = text.split("## ")[3:]
    assert "Output: cam; Split: train" in labels
    (row,) = rows(labels)
    for share in ("Coverage (%)", "Background (%)", "True background (%)"):
        assert float(row[share]) > 0
    lines = [line for line in cost.splitlines() if line.startswith(("| CAM", "| AGMM"))]
    assert len(lines) == 2  # one line for each training, not for each evaluation
    assert "1.23" in lines[0]
    assert "25 s" in lines[0]
    assert "501 MiB" in lines[1]


def test_the_collector_works_again_after_a_failure(tmp_path: Path) -> None:
    assert gc.isenabled()
    with pytest.raises(UserError):
        write_leaderboard(Store(tmp_path / "nowhere"), tmp_path / "out")
    assert gc.isenabled()
