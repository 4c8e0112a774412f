"""A look leaves no trace: ``--dry-run`` writes neither into the cache nor beside the records."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from installed import installed

import harness.data.sets.mini
from harness.basics.registry import DATASETS
from harness.cli.doctor import doctor_verb
from harness.cli.explore import list_verb, show_verb
from harness.cli.main import invoke
from harness.cli.run import run_verb
from harness.data.sets.mini import Mini
from harness.running.trials.overlay import cache_overlay
from harness.running.trials.trial import Options, Trial, prepare


def trace(*places: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below some folders."""
    found = {}
    for place in places:
        for folder, _, files in os.walk(place):
            for path in (Path(folder), *(Path(folder, name) for name in files)):
                stat = path.lstat()
                found[str(path)] = (stat.st_size, stat.st_mtime_ns)
    return found


TARGETS = ["full/mini-full", "agmm/mini-scribble", "cam/mini-image", "agmm/mini-image"]


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh cache", "used cache"])
def test_a_dry_run_of_recipes_of_every_kind_leaves_no_trace(
    fresh: bool, tmp_path: Path, cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # one line for each trial
    where = ["--data-root", str(small)]
    if fresh:  # the data set itself is still to be generated
        monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
        generate = harness.data.sets.mini.generate
        monkeypatch.setattr(harness.data.sets.mini, "generate", lambda root: generate(root, train=16, val=6))
        where = []
    else:
        prepare(Trial(TARGETS[1]), Options(tmp_path, (str(small),), cache, device="cpu"))
    before = trace(tmp_path, cache, small)
    common = ["--seeds", "1", "--local", "--device", "cpu", "--results", str(tmp_path / "results")]
    targets = TARGETS[1:] if fresh else TARGETS
    assert invoke(run_verb, [*targets, *common, *where, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{len(targets)} of {len(targets)} trials to run" in shown
    assert trace(tmp_path, cache, small) == before
    would = {line.split()[0]: line for line in shown.splitlines() if line.startswith(tuple(TARGETS))}
    made = "data set, labels: would be made" if fresh else None
    for name, says in ((TARGETS[1], made), (TARGETS[3], "labels: would be made")):
        assert (says or "would be made") in would[name] if says else "would be made" not in would[name]


#: Two stages of one step each, as a user's own package brings them.
TINY = """
    crop = 32
    batch = { groups = 1, per_group = 4 }
    schedule = { steps = 1 }
"""
STAGES = {
    "stages/__init__.py": "",
    "stages/methods.py": """
        from methods.baselines import ClassActivationMap, PartialCrossEntropy

        class Maps(ClassActivationMap):
            name, title = "maps", "Maps"

        class Second(PartialCrossEntropy):
            name, title = "second", "Second"
    """,
    "stages/recipes/__init__.py": "",
    "stages/recipes/maps.toml": f"""
    [mini-image]
    extends = "cam/mini-image"{TINY}""",
    "stages/recipes/second.toml": f"""
    [mini-image]
    extends = "pce/mini-image"
    labels_from = "maps/mini-image"{TINY}""",
}
ENTRIES = {
    "methods": {"maps": "stages.methods:Maps", "second": "stages.methods:Second"},
    "recipes": {"stages": "stages.recipes"},
}


@pytest.mark.parametrize("uri", [False, True], ids=["folder", "object store"])
def test_a_dry_run_of_a_second_stage_leaves_its_finished_source_alone(
    uri: bool, tmp_path: Path, cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "results"
    place.mkdir()
    results = place.as_uri() if uri else str(place)
    common = ["--seeds", "1", "--local", "--device", "cpu", "--results", results, "--data-root", str(small)]
    with installed(tmp_path / "package", "two-stages", STAGES, ENTRIES):
        assert invoke(run_verb, ["maps/mini-image", *common]) == 0
        before = trace(tmp_path, cache, small)
        capsys.readouterr()
        assert invoke(run_verb, ["maps/mini-image", "second/mini-image", *common, "--dry-run"]) == 0
        assert "1 of 2 trials to run" in capsys.readouterr().out
        assert trace(tmp_path, cache, small) == before  # the source's labels are not made either
        assert invoke(run_verb, ["second/mini-image", *common]) == 0
        before = trace(tmp_path, cache, small)
        capsys.readouterr()
        targets = ["maps/mini-image", "second/mini-image"]
        assert invoke(run_verb, [*targets, *common, "--dry-run"]) == 0
        assert "0 of 2 trials to run" in capsys.readouterr().out
        assert trace(tmp_path, cache, small) == before


def test_a_dry_run_on_a_data_set_of_ones_own_leaves_no_trace(
    tmp_path: Path, cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    root = small / "mini"
    described = tmp_path / "things" / "dataset.toml"
    described.parent.mkdir()
    described.write_text(f"classes = {json.dumps(Mini.info.classes)}\n")
    for name, folder in (("images", "JPEGImages"), ("masks", "SegmentationClass")):
        (described.parent / name).symlink_to(root / folder)
    for split in ("train", "val"):
        shutil.copy(root / "ImageSets" / "Segmentation" / f"{split}.txt", described.parent)
    common = ["--local", "--device", "cpu", "--seeds", "1", "--data-root", f"things={described}"]
    common += ["--set", "dataset=things", "--set", "crop=32", "--results", str(tmp_path / "results")]
    before = trace(tmp_path, cache, small)
    registered = dict(DATASETS._registered)
    try:
        assert invoke(run_verb, ["pce/mini-scribble", "full/mini-full", *common, "--dry-run"]) == 0
    finally:
        DATASETS._registered.clear()
        DATASETS._registered.update(registered)
    assert "2 of 2 trials to run" in capsys.readouterr().out
    assert trace(tmp_path, cache, small) == before


def test_list_show_and_doctor_leave_no_trace(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    before = trace(tmp_path, cache)
    assert invoke(list_verb, ["recipes"]) == 0
    assert invoke(show_verb, ["agmm/mini-scribble"]) == 0
    capsys.readouterr()
    assert invoke(doctor_verb, []) == 0
    assert "torch" in capsys.readouterr().out
    assert trace(tmp_path, cache) == before


def test_an_overlay_shows_what_is_there_and_keeps_writes_to_itself(tmp_path: Path) -> None:
    real = tmp_path / "cache"
    (real / "labels").mkdir(parents=True)
    (real / "labels" / "a.png").write_text("a")
    before = trace(real)
    with cache_overlay(real) as place:
        assert (place / "labels" / "a.png").read_text() == "a"
        (place / "labels" / "a.png").unlink()
        (place / "labels" / "b.png").write_text("b")
        kept = place
    assert not kept.exists()
    assert trace(real) == before
    with cache_overlay(tmp_path / "none") as place:
        assert not list(place.iterdir())
