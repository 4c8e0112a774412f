"""``wsss export`` and ``wsss predict`` for the networks of several seeds, and calls that go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import wsss

from harness.recipes.resolving import parse_overrides
from harness.records.records import Store
from harness.running.trials.execution import execute, plan
from harness.running.trials.trial import Options

RECIPE = "cam/mini-image"
SET = ("schedule.steps=2", "batch.per_group=2", "crop=32")
SETS = tuple(part for value in SET for part in ("--set", value))


@pytest.fixture(scope="module")
def results(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained networks, of seeds 0 and 4."""
    options = Options(tmp_path_factory.mktemp("several"), (str(small),), device="cpu")
    outcomes = execute(plan([RECIPE], [0, 4], parse_overrides(SET)), options, None)
    assert [o.status for o in outcomes] == ["finished"] * 2
    return Path(options.results)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.*") if f.name != "export.json"
    }


def times(folder: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in folder.rglob("*.png")}


def export(small: Path, results: Path, *more: object) -> int:
    where = ("--data-root", small, "--results", results, "--device", "cpu")
    return wsss("export", RECIPE, *SETS, *where, *more)


@pytest.mark.parametrize("form", [("--format", "npy"), ("--output", "cam"), ("--output", "segmentation")])
def test_every_seed_writes_what_its_network_writes_alone(small, results, tmp_path, form):
    assert export(small, results, *form, "--every-seed", "--out", tmp_path / "all") == 0
    assert sorted(f.name for f in (tmp_path / "all").iterdir()) == ["seed-0", "seed-4"]
    alone = {}
    for seed in (0, 4):
        assert export(small, results, *form, "--seed", seed, "--out", tmp_path / f"{seed}") == 0
        alone[seed] = files(tmp_path / f"{seed}")
        assert files(tmp_path / "all" / f"seed-{seed}") == alone[seed]
    assert len(alone[0]) == 16
    assert alone[0] != alone[4]


def test_an_export_goes_on_where_it_stopped(small, results, tmp_path, capsys):
    command = ("--output", "cam", "--seed", 0, "--seed", 4, "--out", tmp_path)
    assert export(small, results, *command) == 0
    first, whole = times(tmp_path), files(tmp_path)
    facts = tmp_path / "seed-4" / "export.json"
    stopped = json.loads(facts.read_text())
    assert stopped.pop("pictures") == 16
    facts.write_text(json.dumps(stopped))
    lost = sorted((tmp_path / "seed-4").glob("*.png"))[5:]
    for file in lost:
        file.unlink()
    capsys.readouterr()
    assert export(small, results, *command) == 0
    said = capsys.readouterr().out
    assert "16 were there" in said
    assert "5 were there" in said
    assert files(tmp_path) == whole
    assert {f for f, t in times(tmp_path).items() if first[f] != t} == set(lost)
    assert json.loads(facts.read_text())["pictures"] == 16


def test_files_of_another_network_or_numbering_are_not_kept(small, results, tmp_path):
    out = ("--out", tmp_path, "--output", "cam")
    assert export(small, results, *out, "--seed", 0) == 0
    first = files(tmp_path)
    assert export(small, results, *out, "--seed", 4) == 0
    other = files(tmp_path)
    assert first.keys() == other.keys()
    assert first != other
    (tmp_path / "export.json").write_text("[")  # whose files these are cannot be known
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"other")
    assert export(small, results, *out, "--seed", 4) == 0
    assert files(tmp_path) == other


def test_pictures_are_predicted_by_each_network(small, results, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(values).save(pictures / f"{number}.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    command = ("predict", RECIPE, pictures, *SETS, "--results", results, "--device", "cpu", "--every-seed")
    assert wsss(*command, "--out", tmp_path / "out") == 1
    first = times(tmp_path / "out")
    assert {str(f.relative_to(tmp_path / "out")) for f in first} == {
        f"seed-{seed}/{n}{end}.png" for seed in (0, 4) for n in range(3) for end in ("", "_overlay")
    }
    assert capsys.readouterr().err.count("left out: ") == 2
    assert wsss(*command, "--out", tmp_path / "out") == 1
    assert times(tmp_path / "out") == first


def test_a_seed_that_is_not_there_is_refused_before_the_first(small, results, tmp_path, capsys):
    for verb in (("export", RECIPE), ("predict", RECIPE, small)):
        seeds = ("--seed", 0, "--seed", 7, "--results", results, "--out", tmp_path / "out")
        assert wsss(*verb, *SETS, *seeds, "--device", "cpu") == 2
        assert f"no finished record of {RECIPE} seed 7" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_one_network_that_is_damaged_stops_no_other(small, results, tmp_path, capsys):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    first = next(record for record in Store(copy).records() if record.seed == 0)
    (first.path / "checkpoint" / "last.pt").write_bytes(b"torn")
    assert export(small, copy, "--every-seed", "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "16 pictures" in said.out
    assert "last.pt" in said.err
    assert len(list((tmp_path / "out" / "seed-4").glob("*.png"))) == 16
