"""What is read is what was recorded: checkpoints, prepared and exported labels, imported records."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import ANY, changed
from synthetic import Factory

from harness.basics.errors import UserError
from harness.basics.files import sha256_of
from harness.basics.reading import Damaged
from harness.cli.main import cli, invoke
from harness.engine.networks import load_weights
from harness.evaluation.verification import verify_store
from harness.nn.torch_files import read_torch
from harness.records.checkpoints import check_recorded
from harness.records.records import Store
from leaderboards.rows.external import import_records


@pytest.fixture
def checkpoint(factory: Factory) -> Path:
    """The recorded checkpoint of a finished trial."""
    place = factory.record(images=4).path / "checkpoint" / "last.pt"
    place.parent.mkdir()
    network = torch.nn.Linear(64, 64)
    torch.save({"method": network.state_dict(), "step": 100, "final": True}, place)
    facts = {"file": "checkpoint/last.pt", "sha256": sha256_of(place)}
    factory.record(images=4, checkpoint=facts, scored=facts["sha256"])
    return place


def test_any_flipped_bit_of_a_recorded_checkpoint_is_found(checkpoint: Path) -> None:
    network = torch.nn.Linear(64, 64)
    load_weights(network, checkpoint)  # type: ignore[arg-type]
    whole = checkpoint.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 20).tolist():
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        checkpoint.write_bytes(flipped)
        with pytest.raises(UserError, match="SHA-256"):
            load_weights(network, checkpoint)  # type: ignore[arg-type]


def test_a_flipped_bit_of_weights_is_found_without_a_record(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"method": {"w": torch.randn(1000)}}, file)
    expected, whole = read_torch(file)["method"]["w"], file.read_bytes()
    for place in np.random.default_rng(1).integers(0, len(whole), 60).tolist():
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        try:
            found = read_torch(file)["method"]["w"]
        except Damaged:
            continue
        assert torch.equal(found, expected)  # padding, times and the like


@pytest.mark.parametrize("name", ANY)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x.pt"
    torch.save({"method": {"w": torch.randn(10)}}, file)
    ANY[name](file)
    if name == "huge":
        return  # a hole behind a zip file's end: sparse, and slow to search
    with pytest.raises(Damaged) as caught:
        read_torch(file)
    assert str(file) in str(caught.value)


def test_a_checkpoint_does_not_inflate(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(Damaged, match="inflates"):
        read_torch(file)


def test_another_seeds_checkpoint_is_refused(checkpoint: Path, factory: Factory) -> None:
    other = factory.record(seed=1, images=4, checkpoint={"file": "checkpoint/last.pt", "sha256": "0" * 64})
    shutil.copytree(checkpoint.parent, other.path / "checkpoint")
    with pytest.raises(UserError, match="not the checkpoint that was recorded"):
        check_recorded(other.path / "checkpoint" / "last.pt")
    check_recorded(checkpoint)


def test_the_best_checkpoint_has_a_hash_too(checkpoint: Path, factory: Factory) -> None:
    best = checkpoint.with_name("best.pt")
    shutil.copy(checkpoint, best)
    factory.record(images=4, best={"miou": 50.0, "step": 10, "sha256": "1" * 64})
    with pytest.raises(UserError, match="SHA-256"):
        check_recorded(best)


# --- the whole store -------------------------------------------------------------------------------------


def test_verify_store_reads_everything(
    factory: Factory, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.evaluation.verification._classes", lambda record: None)
    arguments = ["verify-store", "--results", str(factory.store.root)]
    assert invoke(cli, arguments) == 0
    assert "1 records, 1 evaluations and 1 checkpoints are sound, 0 breaches" in capsys.readouterr().out
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    trained = factory.store.root / "agmm" / "mini-point" / "abc" / "seed-3"
    (trained / "checkpoint").mkdir(parents=True)
    (trained / "checkpoint" / "last.pt").write_bytes(b"torn")
    (trained / "history.csv").write_text("step\nx\n")
    (trained / "running.json").write_text("[]")
    labels = trained / "pseudo_labels" / "train-cam"
    labels.mkdir(parents=True)
    (labels / "a.png").write_bytes(b"other")
    (labels / "complete.json").write_text(json.dumps({"sha256": {"a": "0" * 64}}))
    stray = factory.store.root / "x" / "y" / "results" / "agmm" / "mini" / "abc" / "seed-0"
    stray.mkdir(parents=True)
    (stray / "record.json").write_text("{}")
    assert invoke(cli, arguments) == 1
    said = capsys.readouterr().out.splitlines()
    named = [line.removeprefix("- ").partition(":")[0] for line in said if line.startswith("- ")]
    wrong = [
        checkpoint,
        trained / "checkpoint" / "last.pt",
        trained / "history.csv",
        trained / "running.json",
        labels / "a.png",
        stray / "record.json",
    ]
    assert sorted(named) == sorted(map(str, wrong))


def test_verify_store_compares_classes_with_the_data_set(factory: Factory) -> None:
    factory.record(images=4)  # its classes are not those of the miniature scenes
    (error,) = verify_store(factory.store).breaches.values()
    assert "classes" in error.problem


# --- import ----------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "inner" / "target")


def _everything(place: Path) -> set[str]:
    return {p.relative_to(place).as_posix() for p in place.rglob("*")}


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../../x"},
        {"name": "../x"},
        {"name": "/tmp/x"},
        {"name": "a/../../x"},
        {"name": "a/b/../../../x"},
        {"name": "a\\..\\x/b"},
        {"name": "C:/x"},
        {"digest": "../../../x"},
        {"digest": "/x"},
        {"digest": ""},
        {"seed": "../../x"},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": None},
    ],
)
def test_nothing_is_written_outside_the_store(
    factory: Factory, target: Store, tmp_path: Path, values: dict[str, object]
) -> None:
    record = factory.record(images=4)
    changed(**values)(record.path / "record.json")
    before = _everything(tmp_path)
    with pytest.raises(UserError, match="no finished record"):
        import_records(factory.store.root, target)
    assert _everything(tmp_path) == before


def test_a_name_that_leads_out_by_its_own_folders_is_not_followed(
    factory: Factory, target: Store, tmp_path: Path
) -> None:
    record = factory.record(images=4)
    shutil.move(record.path.parents[2], record.path.parents[2].with_name("..x"))
    moved = factory.store.root / "..x" / Path(*record.path.parts[-3:])
    changed(name="..x/mini-point")(moved / "record.json")
    before = _everything(tmp_path)
    with pytest.raises(UserError):
        import_records(factory.store.root, target)
    assert _everything(tmp_path) == before


def test_only_known_regular_files_are_copied(factory: Factory, target: Store, tmp_path: Path) -> None:
    record = factory.record(images=4)
    factory.history(record, {"cls": np.linspace(1, 0.5, 4)})
    (run,) = record.evaluations.values()
    (tmp_path / "secret").write_text("secret")
    (run.path / "notes.txt").symlink_to(tmp_path / "secret")
    (run.path / "predictions").mkdir()
    (run.path / "predictions" / "a.png").write_bytes(b"x")
    (record.path / "evaluations" / "more").mkdir()
    (record.path / "evaluations" / "more" / "evil.sh").write_text("x")
    os.mkfifo(run.path / "pipe")
    written, _ = import_records(factory.store.root, target)
    assert _everything(written[0]) == {
        "record.json",
        "history.csv",
        "trial.lock",  # the target's own
        "evaluations",
        f"evaluations/{run.path.name}",
        f"evaluations/{run.path.name}/evaluation.json",
        f"evaluations/{run.path.name}/per_image.npz",
    }


@pytest.mark.parametrize("part", ["record", "evaluation", "counts", "folder", "trial", "curve"])
def test_no_link_is_followed(factory: Factory, target: Store, tmp_path: Path, part: str) -> None:
    record = factory.record(images=4)
    factory.history(record, {"cls": np.linspace(1, 0.5, 4)})
    (run,) = record.evaluations.values()
    place = {
        "record": record.path / "record.json",
        "evaluation": run.path / "evaluation.json",
        "counts": run.path / "per_image.npz",
        "folder": run.path,
        "trial": record.path,
        "curve": record.path / "history.csv",
    }[part]
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    origin = Store(factory.store.root)
    written, _ = import_records(origin, target)
    assert len(origin.left_out) == 1
    names = [name for folder in written for name in _everything(folder)]
    assert not any(name.endswith(place.name) for name in names)


def test_an_import_copies_what_is_sound(
    factory: Factory, target: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    factory.record(factory.resolved("pce/mini-point"), images=4)
    damaged = factory.record(images=4)
    changed(miou=500)(next(damaged.path.glob("evaluations/*/evaluation.json")))
    code = invoke(cli, ["import", str(factory.store.root), "--results", str(target.root)])
    said = capsys.readouterr()
    assert code == 1
    assert "2 records imported" in said.out
    assert "evaluation.json" in said.err
    assert [len(r.evaluations) for r in target.records()] == [0, 1]
