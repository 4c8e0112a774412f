"""Published cells: the packaged ones load, mistakes are refused, recipes and cells are compared."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from synthetic import Factory

from harness.basics.errors import UserError
from harness.recipes.specs import EvaluationSpec
from leaderboards.rows.published import CELLS_FOLDER, published, read_cells, row_means, validate_cells

GOOD = """
[paper]
title = "A paper"
kind = "paper"
[paper.common]
row = "M"
dataset = "mini"
split = "val"
supervision = "point"
[paper.cells]
one = { value = 50.0, scales = [0.5, 1.0], flip = true, crf = false }
two = { reason = "not readable", supervision = "scribble" }
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "m.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_packaged_cells_have_a_value_or_a_reason() -> None:
    cells = published().cells
    assert cells
    for cell_id, cell in cells.items():
        assert cell_id == cell.id == f"{cell.source}/{cell_id.partition('/')[2]}"
        assert (cell.value is None) == bool(cell.reason)


def test_the_agmm_cells_are_as_the_sources_say() -> None:
    known = published()
    for slug in ("voc-point-val", "voc-scribble-val", "voc-full-val", "cityscapes-20clicks-val"):
        cell = known.find(f"agmm-cvpr2023/{slug}")
        assert cell.value is None
        assert "could not be read" in cell.reason
    repo = known.find("agmm-sass-repo/voc-point-val")
    assert (repo.value, repo.scales, repo.flip, repo.crf) == (67.80, "single", False, False)
    assert repo.protocol == "single scale, no flip, no CRF"
    assert "not a published result" in repo.notes
    assert known.find("tel-readme/voc-scribble-dlv3p-val").protocol.startswith("scales not stated")


def test_shared_values_and_overrides(tmp_path: Path) -> None:
    known = read_cells([write(tmp_path, GOOD)])
    assert known.cells["paper/one"].value == 50.0
    assert known.cells["paper/one"].protocol == "scales 0.5, 1.0, flip, no CRF"
    assert known.cells["paper/two"].supervision == "scribble"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flip = true", "flipp = true", "unknown key 'flipp'"),
        ("value = 50.0, ", "", "neither a value nor a reason"),
        ("value = 50.0", 'value = 50.0, reason = "x"', "a value and a reason"),
        ("value = 50.0", "value = 150.0", "less than or equal to 100"),
        ("value = 50.0", "value = nan", "value': a number must be finite"),
        ('supervision = "point"', 'supervision = "points"', "key 'supervision'"),
        ('kind = "paper"', 'kind = "rumour"', "key 'kind'"),
        ('dataset = "mini"\n', "", "key 'dataset'"),
        ("[paper.cells]", "[paper.cells", "not valid TOML"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=message):
        read_cells([write(tmp_path, GOOD.replace(old, new, 1))])


def test_a_source_stands_once(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    with pytest.raises(UserError, match="stands twice"):
        read_cells([file, file])


def test_unknown_cell_names_the_nearest() -> None:
    with pytest.raises(UserError, match="agmm-sass-repo/voc-point-val"):
        published().find("agmm-sass-repo/voc-points-val")


def test_validator(tmp_path: Path, factory: Factory) -> None:
    known = read_cells([write(tmp_path, GOOD)])
    right = factory.resolved("m/a", evaluation=(EvaluationSpec(cells=("paper/one",)),))
    wrong = factory.resolved("m/b", evaluation=(EvaluationSpec(cells=("paper/two", "paper/three")),))
    assert validate_cells({"m/a": right, "m/b": wrong}, known) != []
    found = [(f.kind, f.cell, f.recipe) for f in validate_cells({"m/a": right, "m/b": wrong}, known)]
    assert ("disagreement", "paper/two", "m/b") in found
    assert ("unknown cell", "paper/three", "m/b") in found
    right = factory.resolved("m/a", evaluation=(EvaluationSpec(cells=("paper/one",), tolerance=0.5),))
    found = [(f.kind, f.cell) for f in validate_cells({"m/a": right}, known)]
    assert found == [("cell without recipe", "paper/two")]


def test_validator_works_both_ways(tmp_path: Path, factory: Factory) -> None:
    known = read_cells([write(tmp_path, GOOD)])
    loose = factory.resolved("m/a", evaluation=(EvaluationSpec(cells=("paper/one",)),))
    silent = factory.resolved("m/b", suites=("paper",))
    ours = factory.resolved("m/c", suites=("m",))
    found = {
        (f.kind, f.cell, f.recipe) for f in validate_cells({r.name: r for r in (loose, silent, ours)}, known)
    }
    assert found == {
        ("no tolerance", "paper/one", "m/a"),
        ("recipe without cell", "", "m/b"),
        ("cell without recipe", "paper/two", ""),
    }


def test_context_cells_need_no_recipe(tmp_path: Path) -> None:
    text = GOOD.replace('row = "M"', 'row = "M"\ncontext = true')
    assert validate_cells({}, read_cells([write(tmp_path, text)])) == []


def test_row_means(tmp_path: Path) -> None:
    text = GOOD + "three = { value = 60.0, iou = { a = 59.0, b = 61.1 } }\n"
    assert row_means(read_cells([write(tmp_path, text)])) == []
    text = GOOD + "three = { value = 60.0, iou = { a = 59.0, b = 61.3 } }\n"
    (finding,) = row_means(read_cells([write(tmp_path, text)]))
    assert (finding.kind, finding.cell) == ("row mean", "paper/three")


def test_every_file_of_the_folder_is_read() -> None:
    sources = {key for file in CELLS_FOLDER.glob("*.toml") for key in read_cells([file]).sources}
    assert sources == set(published().sources)


def test_no_value_is_infinite() -> None:
    values = [c.value for c in published().cells.values() if c.value is not None]
    assert values
    assert all(math.isfinite(v) for v in values)


def test_the_known_inconsistencies_are_found() -> None:
    cells = ["dskd-gc-table6/tscd", "dskd-gc-table6/afa", "dskd-gc-table6/toco"]
    assert [finding.cell for finding in row_means()] == cells
