"""A damaged, copied or misplaced file is named and left out, and everything else is shown."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import ANY, EVALUATION, RECORD, changed, no_rights
from synthetic import CLASSES, Factory

from harness.basics.arrays import read_arrays
from harness.basics.errors import UserError
from harness.basics.reading import read_bytes
from harness.cli.main import cli, invoke
from harness.evaluation.boundary import Boundary
from harness.records.records import PerImage, Record, Store
from leaderboards.judge.comparison import compared_records
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.tables import leaderboard
from leaderboards.write.report import provenance, write_leaderboard

SOUND = "agmm/mini-point"
OTHER = "pce/mini-point"


@pytest.fixture
def store(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Factory:
    """Two sound seeds of one recipe and one of another, with curves and bands; the last is damaged."""
    monkeypatch.setattr("harness.cli.report._recipes", dict)
    for name, seed in ((SOUND, 0), (SOUND, 1), (OTHER, 0)):
        record = factory.record(factory.resolved(name), seed, images=5)
        factory.history(record, {"cls": np.linspace(1, 0.5, 4)})
        for run in record.evaluations.values():
            counts = run.per_image
            totals = [a.sum(0) for a in (counts.intersection, counts.predicted, counts.labelled)]
            bands = [np.stack([t // 3, t // 2]) for t in totals]
            Boundary(np.array([1, 2]), *bands).save(run.path / "boundary.npz")
    return factory


def place(factory: Factory, pattern: str, name: str = OTHER) -> Path:
    """The one file of a recipe's record."""
    (found,) = (factory.store.root / name).glob(f"*/seed-0/{pattern}")
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of ``wsss``."""
    code = invoke(cli, [str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def check_left_out(factory: Factory, capsys: pytest.CaptureFixture[str], out: Path, file: Path) -> None:
    code, _, err = run(capsys, "leaderboard", "--results", factory.store.root, "--out", out)
    assert code == 1, err
    assert str(file) in err
    assert len(err.splitlines()) == 1, err
    text = (out / "leaderboard.md").read_text()
    assert "Left out: 1 damaged or misplaced file" in text
    assert str(file) in text
    lines = [line.split(",") for line in (out / "leaderboard.csv").read_text().splitlines()[1:]]
    assert any(SOUND in line for line in lines)
    assert not any(OTHER in line for line in lines)


@pytest.mark.parametrize("name", [*RECORD, "no rights"])
def test_a_damaged_record_is_left_out(
    store: Factory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    file = place(store, "record.json")
    if name == "no rights":
        with no_rights(monkeypatch, file):
            check_left_out(store, capsys, tmp_path / "out", file)
        return
    RECORD[name](file)
    check_left_out(store, capsys, tmp_path / "out", file)


@pytest.mark.parametrize("name", [*EVALUATION, "no rights"])
def test_a_damaged_evaluation_is_left_out(
    store: Factory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    file = place(store, "evaluations/*/evaluation.json")
    if name == "no rights":
        with no_rights(monkeypatch, file):
            check_left_out(store, capsys, tmp_path / "out", file)
        return
    EVALUATION[name](file)
    check_left_out(store, capsys, tmp_path / "out", file)


def _counts(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        arrays = {k: v.copy() for k, v in read_arrays(path).items()}
        change(arrays)
        np.savez_compressed(path, **arrays)

    return write


def _set(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return _counts(lambda arrays: arrays.update({name: value(arrays[name])}))


COUNTS: dict[str, Callable[[Path], None]] = {
    **ANY,
    "missing": Path.unlink,
    "more right than labelled": _set("intersection", lambda a: a + 1000),
    "negative": _set("intersection", lambda a: a - 100_000),
    "more predicted than counted": _set("predicted", lambda a: a * 50),
    "fewer pictures": _counts(lambda arrays: arrays.update({k: v[:-1] for k, v in arrays.items()})),
    "fewer classes": _set("labelled", lambda a: a[:, :-1]),
    "a picture twice": _set("ids", lambda a: np.array([a[0], *a[:-1]])),
    "numbers for ids": _set("ids", lambda a: np.arange(len(a))),
    "floats": _set("predicted", lambda a: a.astype(np.float64)),
    "one number": _set("predicted", lambda a: np.int64(3)),
    "objects": _set("ids", lambda a: np.array([{"a": 1}] * len(a), dtype=object)),
    "an array less": _counts(lambda arrays: arrays.pop("labelled")),
    "another network's": _set("intersection", lambda a: a // 2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_damaged_counts_leave_their_evaluation_out(store: Factory, name: str) -> None:
    file = place(store, "evaluations/*/per_image.npz")
    COUNTS[name](file)
    frame = gather_records(store.store)
    rows = leaderboard(frame, None, resamples=20)
    assert [row.recipe for row in rows if row.n] == [SOUND]
    assert str(file.parent) in provenance(frame)
    assert len(store.store.left_out) == 1
    with pytest.raises(UserError, match="remedy:"):
        next(store.store.records("pce/*")).evaluations["val-single"].load()


def test_counts_that_inflate_beyond_all_bounds_are_not_inflated(
    store: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.basics.arrays.MOST_ARRAY", 1 << 20)
    file = place(store, "evaluations/*/per_image.npz")
    np.savez_compressed(file, ids=np.zeros(100, "<U8"), labelled=np.zeros((500, 500), np.int64))
    assert file.stat().st_size < 1 << 16
    with pytest.raises(UserError, match="inflates"):
        read_arrays(file)


@pytest.mark.parametrize("kind", ["boundary", "curves"])
@pytest.mark.parametrize("name", ANY)
def test_damaged_bands_and_curves_are_left_out_of_plots(
    store: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    file = place(store, "evaluations/*/boundary.npz" if kind == "boundary" else "history.csv")
    ANY[name](file)
    code, out, err = run(
        capsys, "plot", "--kind", kind, "--format", "svg",
        "--results", store.store.root, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 1
    assert str(file) in err
    assert "wrote" in out


@pytest.mark.parametrize(
    "text", ["step,loss\n10,1\n10,2\n", "step,loss\n10,x\n", "loss\n1\n", "step,loss\n10,inf\n", "step\n-5\n"]
)
def test_a_curve_that_cannot_be_is_left_out(store: Factory, text: str) -> None:
    file = place(store, "history.csv")
    file.write_text(text)
    (record,) = store.store.records("pce/*")
    assert record.history().empty
    assert str(file) in next(iter(store.store.left_out))


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_an_evaluation_of_another_network_is_not_counted(store: Factory, checkpoint: str) -> None:
    for seed, sha256 in ((0, "1" * 64), (1, "2" * 64)):
        (record,) = (r for r in store.store.records(SOUND) if r.seed == seed)
        (run,) = record.all_evaluations
        changed(spec__checkpoint=checkpoint, checkpoint_sha256=sha256)(run.path / "evaluation.json")
        facts = {"checkpoint": {"sha256": sha256}, "best": {"miou": 1.0, "step": 3, "sha256": sha256}}
        facts["checkpoint" if checkpoint == "best" else "best"]["sha256"] = None
        changed(**facts)(record.path / "record.json")
    assert not gather_records(store.store, SOUND).attrs["left_out"]
    here, other = sorted((store.store.root / SOUND).glob("*/seed-*/evaluations/*"))
    shutil.rmtree(here)
    shutil.copytree(other, here)
    frame = gather_records(Store(store.store.root), SOUND)
    assert frame["miou"].notna().tolist() == [False, True]
    (line,) = frame.attrs["left_out"]
    assert f"{here}/evaluation.json: it scores another network (222222222222)" in line


def test_a_file_in_the_place_of_evaluations_is_named(store: Factory) -> None:
    folder = place(store, "evaluations")
    shutil.rmtree(folder)
    folder.write_text("")
    (line,) = gather_records(store.store).attrs["left_out"]
    assert str(folder) in line


@pytest.mark.parametrize("verb", [["report", "--no-plots"], ["claims"]])
def test_other_verbs_go_on_too(
    store: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    store.record(store.resolved("dfr/mini-point"), 0, images=5)
    changed(seed="0")(place(store, "record.json"))
    code, _, err = run(capsys, *verb, "--results", store.store.root, "--out", tmp_path / "out")
    assert code == 1
    assert str(place(store, "record.json")) in err
    if verb[0] == "report":
        assert "Left out" in (tmp_path / "out" / "report.html").read_text()


def test_a_comparison_is_not_concerned_by_what_it_is_not_about(store: Factory) -> None:
    store.record(store.resolved("dfr/mini-point"), 0, images=5)
    changed(seed="0")(place(store, "record.json"))
    found = compared_records(store.store, SOUND, "dfr/mini-point")
    assert set(found["name"]) == {SOUND, "dfr/mini-point"}
    assert not store.store.left_out


def test_a_store_of_damaged_records_alone_says_so(
    store: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in store.store.root.glob("*/*/*/*/record.json"):
        file.write_text("{}")
    code, _, err = run(capsys, "leaderboard", "--results", store.store.root, "--out", tmp_path / "out")
    assert code == 2
    assert "3 left out" in err


# --- copies and misplaced records ------------------------------------------------------------------------


def _seeds(factory: Factory) -> dict[str, tuple[int, ...]]:
    rows = leaderboard(gather_records(factory.store), None, resamples=0)
    return {row.recipe: row.seeds for row in rows if row.n}


COPIES: dict[str, Callable[[Path], Path]] = {
    "seed": lambda seed: seed.with_name("seed-0.bak"),
    "seed of another number": lambda seed: seed.with_name("seed-7"),
    "seed with a zero": lambda seed: seed.with_name("seed-00"),
    "seed in capitals": lambda seed: seed.with_name("SEED-0"),
    "seed with another name": lambda seed: seed.with_name("old"),
    "digest": lambda seed: seed.parent.with_name(f"{seed.parent.name}.bak") / "seed-0",
    "recipe": lambda seed: seed.parents[1].with_name("mini-point (copy)") / seed.parent.name / "seed-0",
    "method": lambda seed: seed.parents[2].with_name("PCE") / Path(*seed.parts[-3:]),
    "trial for a digest": lambda seed: seed.parents[1] / "seed-0",
    "store in a store": lambda seed: seed.parents[3] / "old" / Path(*seed.parts[-4:]),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("link", [False, True])
def test_a_copy_is_named_and_not_counted(store: Factory, name: str, link: bool) -> None:
    before, original = _seeds(store), place(store, "record.json").parent
    copied = COPIES[name](original)
    copied.parent.mkdir(parents=True, exist_ok=True)
    if link:
        copied.symlink_to(original)
    else:
        shutil.copytree(original, copied)
    assert _seeds(store) == before
    (error,) = store.store.left_out.values()
    assert str(copied) in error.brief


def test_records_that_lie_elsewhere_behind_links_are_shown(store: Factory, tmp_path: Path) -> None:
    before, digest = _seeds(store), place(store, "record.json").parents[1]
    shutil.move(digest, tmp_path / "large disk")
    digest.symlink_to(tmp_path / "large disk")
    assert _seeds(store) == before
    assert not store.store.left_out


def test_a_link_that_leads_back_is_named(store: Factory) -> None:
    loop = store.store.root / "agmm" / "loop"
    loop.symlink_to(loop.name)
    trial = place(store, "record.json").parent.with_name("seed-9")
    trial.symlink_to("nowhere")
    assert _seeds(store) == {SOUND: (0, 1), OTHER: (0,)}
    assert {str(loop), str(trial)} == set(store.store.left_out)


# --- classes ---------------------------------------------------------------------------------------------


def test_classes_are_those_of_the_data_set(store: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboards.rows.gathering.dataset_classes", lambda name: (*CLASSES[:3], "star"))
    frame = gather_records(store.store)
    assert frame["run"].isna().all()
    assert "its classes are not those of mini (cross)" in provenance(frame)


def test_one_store_has_one_list_of_classes_for_a_data_set(factory: Factory) -> None:
    factory.record(factory.resolved(SOUND), 0, images=5)
    factory.record(factory.resolved(SOUND), 1, images=5, classes=("background", "ring", "disc", "cross"))
    assert _seeds(factory) == {SOUND: (0,)}
    assert len(factory.store.left_out) == 1


# --- readers ---------------------------------------------------------------------------------------------


def test_a_reader_neither_waits_nor_reads_without_end(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", most=5) == b"12345"
    for most, path in ((4, tmp_path / "x"), (1 << 40, Path("/dev/zero")), (1 << 40, tmp_path)):
        with pytest.raises(UserError) as caught:
            read_bytes(path, most)
        assert str(path) in str(caught.value)


def test_a_record_made_by_hand_counts_as_any(factory: Factory) -> None:
    record: Record = factory.record(images=5)
    counts = record.evaluations["val-single"].per_image
    assert isinstance(counts, PerImage)
    assert record.sound.keys() == {"val-single"}


def test_checked_counts_are_read_once(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check and the table share what was read, within bounds; a store too large for them reads again."""
    from harness.records import records

    for seed in range(3):
        factory.record(seed=seed)
    read: list[Path] = []
    load = records.PerImage.load.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        records.PerImage, "load", classmethod(lambda cls, path: read.append(path) or load(cls, path))
    )
    with_room = write_leaderboard(Store(factory.store.root), factory.store.root.parent / "a").tables
    assert len(read) == len(set(read)) == 3
    monkeypatch.setattr(records, "_KEPT", 0)
    read.clear()
    assert write_leaderboard(Store(factory.store.root), factory.store.root.parent / "b").tables == with_room
    assert len(read) == 6


def test_the_store_that_benchmarks_measure_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the costs in the documentation would be those of leaving records out."""
    script = Path(__file__).parents[2] / "benchmarks" / "report_at_scale.py"
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script))["make"](tmp_path, 4)
    frame = gather_records(Store(tmp_path))
    assert frame.attrs["left_out"] == []
    assert frame["miou"].notna().sum() == 4
