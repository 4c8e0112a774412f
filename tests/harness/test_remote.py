"""Stores under a URI: order and number of uploads, failing filesystems, kills, mirrors that disagree."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from harness import driver_claim, object_store, remote
from harness.cli import cli, invoke
from harness.driver_claim import only_driver
from harness.errors import UserError
from harness.files import write_json
from harness.object_store import Files, is_uri, shown
from harness.records import PerImage, Store
from harness.remote import Mirror, for_work

RECIPE = "agmm/mini-scribble"
TINY = ["--set", "schedule.steps=30", "--set", "batch.per_group=4", "--set", "crop=48"]
ONE = ["--seed", "0", "--local", "--device", "cpu"]


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


class Watched:
    """A filesystem that notes what is done, and fails when told to.

    Args:
        base: where files really go.
        kind: pretended type; ``s3`` stores whole objects without folders and renames.
    """

    def __init__(self, base: pyarrow.fs.FileSystem, kind: str) -> None:
        self.base, self.type_name = base, kind
        self.done: list[tuple[str, str]] = []
        #: Raised by the next calls, one each.
        self.failures: list[Exception] = []

    def _call(self, what: str, *arguments: object, **options: object):
        self.done.append((what, str(arguments[0])))
        if self.failures and what != "create_dir":
            raise self.failures.pop(0)
        return getattr(self.base, what)(*arguments, **options)

    def __getattr__(self, name: str):
        return lambda *arguments, **options: self._call(name, *arguments, **options)

    def open_output_stream(self, path: str):
        if self.type_name == "s3":  # the filesystem behind wants folders
            self.base.create_dir(path.rpartition("/")[0], recursive=True)
        return self._call("open_output_stream", path)

    def stored(self) -> list[str]:
        """Names in the order in which they were uploaded; drafts by the name they get."""
        paths = [path.removeprefix("bucket/p/") for what, path in self.done if what == "open_output_stream"]
        return [path.replace("/.", "/").removesuffix(".part") for path in paths]

    def read(self, name: str) -> bytes:
        with self.base.open_input_stream(f"bucket/p/{name}") as stream:
            return stream.read()


@pytest.fixture(params=["s3", "hdfs"])
def files(request, monkeypatch, tmp_path_factory) -> Watched:
    """What ``connect`` returns: a folder seen through pyarrow, watched; nobody waits between attempts."""
    place = str(tmp_path_factory.mktemp("store"))
    base = pyarrow.fs.SubTreeFileSystem(place, pyarrow.fs.LocalFileSystem())
    watched = Watched(base, request.param)
    base.create_dir("bucket/p", recursive=True)
    monkeypatch.setattr(object_store, "connect", lambda uri: (watched, "bucket/p"))
    monkeypatch.setattr(object_store, "WAITS", (0.0, 0.0, 0.0))
    return watched


TRIAL = "m/one/dddddddddddd/seed-0"


def mirror(tmp_path: Path, name: str = "a") -> Mirror:
    return Mirror("s3://bucket/p", tmp_path / name)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{Path(name).name}.draft"
    draft.write_text(text)
    draft.replace(folder / name)


def names_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in names_below(folder)}


WHOLE = {
    "record.json": "{}",
    "evaluations/e/evaluation.json": "{}",
    "evaluations/e/per_image.npz": "counts",
    "evaluations/e/predictions/1.png": "picture",
    "checkpoint/best.pt": "best",
    "checkpoint/last.pt": "weights",
    "history.csv": "step\n",
}


def test_uris_are_told_from_folders_and_printed_without_secrets():
    assert is_uri("s3://bucket/x")
    assert is_uri("fsspec+memory://x")
    assert not is_uri("results")
    assert not is_uri("C:\\results")
    assert not is_uri(Path("results"))
    assert shown("s3://key:secret@bucket/x/?scheme=http&endpoint_override=localhost:1") == "s3://bucket/x"


def test_json_comes_after_what_it_describes_and_the_record_last(tmp_path, files):
    one = mirror(tmp_path)
    folder = one.root / TRIAL
    with one.work(folder):
        for name, text in WHOLE.items():
            write(folder, name, text)
        write(folder, "trial.lock", "")
        write(folder, "running.json", "{}")
        write(folder, ".half.part", "")
    order = [name.removeprefix(f"{TRIAL}/") for name in files.stored()]
    assert sorted(order) == sorted(WHOLE), "everything once; no lock, no draft"
    place = {name: order.index(name) for name in order}
    assert place["record.json"] == len(order) - 1
    assert place["evaluations/e/evaluation.json"] == len(order) - 2
    assert place["checkpoint/last.pt"] == len(order) - 3
    assert {n: files.read(f"{TRIAL}/{n}").decode() for n in WHOLE} == WHOLE


def test_what_has_not_changed_is_not_stored_again(tmp_path, files):
    one = mirror(tmp_path)
    folder = one.root / TRIAL
    with one.work(folder):
        for name, text in WHOLE.items():
            write(folder, name, text)
    files.done.clear()
    with one.work(folder):
        one.save(folder)
    one.push(folder)
    assert files.stored() == []
    again = mirror(tmp_path)  # another process of this machine
    with again.work(folder), (folder / "history.csv").open("a") as stream:
        stream.write("10\n")
    assert files.stored() == [f"{TRIAL}/history.csv"]
    assert [what for what, _ in files.done if what == "open_input_stream"] == [], "nothing is fetched either"


def test_a_checkpoint_is_stored_while_work_goes_on_as_it_was_then(tmp_path, files, monkeypatch):
    one = mirror(tmp_path)
    folder = one.root / TRIAL
    held, seen = [], []
    upload = one.files.upload

    def slow(source: Path, name: str) -> None:
        while held:
            time.sleep(0.001)
        upload(source, name)
        seen.append((name.rpartition("/")[2], files.read(name).decode()))

    monkeypatch.setattr(one.files, "upload", slow)
    with one.work(folder):
        held.append(True)
        write(folder, "history.csv", "10\n")
        write(folder, "checkpoint/last.pt", "step 10")
        one.save(folder)
        for step in (20, 30):  # while the first is under way
            with (folder / "history.csv").open("a") as stream:
                stream.write(f"{step}\n")
            write(folder, "checkpoint/last.pt", f"step {step}")
            one.save(folder)
        held.clear()
    assert seen == [
        ("history.csv", "10\n"),
        ("last.pt", "step 10"),
        ("history.csv", "10\n20\n30\n"),
        ("last.pt", "step 30"),
    ]
    assert not (one.place / "staged" / TRIAL).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("no"), RuntimeError("CUDA error")])
def test_what_an_ended_trial_leaves_is_stored(tmp_path, files, error):
    one = mirror(tmp_path)
    with pytest.raises((KeyboardInterrupt, UserError, RuntimeError)), one.work(one.root / TRIAL):
        write(one.root / TRIAL, "checkpoint/last.pt", "step 10")
        raise error
    assert files.read(f"{TRIAL}/checkpoint/last.pt") == b"step 10"
    with one.work(one.root / TRIAL):
        write(one.root / TRIAL, "error.txt", "trace")
    with one.work(one.root / TRIAL):
        (one.root / TRIAL / "error.txt").unlink()
    with pytest.raises(FileNotFoundError):
        files.read(f"{TRIAL}/error.txt")


def test_another_machine_goes_on_and_the_first_one_sees_it(tmp_path, files):
    a, b = mirror(tmp_path, "a"), mirror(tmp_path, "b")
    with a.work(a.root / TRIAL):
        write(a.root / TRIAL, "checkpoint/last.pt", "step 10")
        write(a.root / TRIAL, "evaluations/e/per_image.npz", "only half of it")
    write(a.root / TRIAL, "checkpoint/last.pt", "step 15")  # killed before it was stored
    with b.work(b.root / TRIAL):
        assert (b.root / TRIAL / "checkpoint/last.pt").read_text() == "step 10"
        write(b.root / TRIAL, "checkpoint/last.pt", "step 20")
    with a.work(a.root / TRIAL):
        assert (a.root / TRIAL / "checkpoint/last.pt").read_text() == "step 20"
    assert contents(a.root / TRIAL) == contents(b.root / TRIAL)


def test_what_a_killed_process_had_not_stored_is_not_lost_on_its_own_machine(tmp_path, files):
    a = mirror(tmp_path)
    with a.work(a.root / TRIAL):
        write(a.root / TRIAL, "checkpoint/last.pt", "step 10")
    write(a.root / TRIAL, "checkpoint/last.pt", "step 15")
    write(a.root / TRIAL, "record.json", "{}")
    again = mirror(tmp_path)
    assert "record.json" not in again.listed(again.root / TRIAL), "not stored, so it does not exist"
    with again.work(again.root / TRIAL):
        assert (again.root / TRIAL / "checkpoint/last.pt").read_text() == "step 15"
    assert files.read(f"{TRIAL}/checkpoint/last.pt") == b"step 15"


def test_what_passes_by_itself_is_tried_again(tmp_path, files):
    one = mirror(tmp_path)
    with one.work(one.root / TRIAL):
        write(one.root / TRIAL, "record.json", "{}")
        files.failures = [OSError("curlCode: 7, Could not connect"), OSError("AWS Error SLOW_DOWN")]
    assert files.read(f"{TRIAL}/record.json") == b"{}"
    other = mirror(tmp_path, "b")
    files.failures = [OSError("connection reset by peer")] * 3
    other.pull(other.root / TRIAL, for_work)
    assert contents(other.root / TRIAL) == {"record.json": "{}"}


def test_a_store_that_stays_away_leaves_what_it_held_and_says_so(tmp_path, files):
    one = mirror(tmp_path)
    with one.work(one.root / TRIAL):
        for name, text in WHOLE.items():
            write(one.root / TRIAL, name, text)
    with pytest.raises(UserError, match="cannot be reached") as caught, one.work(one.root / TRIAL):
        write(one.root / TRIAL, "checkpoint/last.pt", "other weights")
        write(one.root / TRIAL, "record.json", '{"other": 1}')
        files.failures = [OSError("no route to host")] * 50
    assert caught.value.remedy
    assert {n: files.read(f"{TRIAL}/{n}").decode() for n in WHOLE} == WHOLE
    files.failures = []
    again = mirror(tmp_path)  # the same machine, once the network is back
    with again.work(again.root / TRIAL):
        pass
    assert files.read(f"{TRIAL}/checkpoint/last.pt") == b"other weights"
    assert files.read(f"{TRIAL}/record.json") == b'{"other": 1}'


def test_a_refusal_is_not_tried_again(tmp_path, files):
    files.failures = [OSError("AWS Error ACCESS_DENIED during ListObjectsV2 operation"), OSError("unused")]
    with pytest.raises(UserError, match="refuses access") as caught:
        mirror(tmp_path).refresh("*")
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy
    assert len(files.failures) == 1


def test_a_failed_upload_of_a_checkpoint_does_not_stop_the_work(tmp_path, files, capsys):
    one = mirror(tmp_path)
    folder = one.root / TRIAL
    with one.work(folder):
        write(folder, "checkpoint/last.pt", "step 10")
        files.failures = [OSError("no route to host")] * 50
        one.save(folder)
        one._background[TRIAL].sending.exception()
        files.failures = []
        write(folder, "checkpoint/last.pt", "step 20")
        one.save(folder)
    assert files.read(f"{TRIAL}/checkpoint/last.pt") == b"step 20"
    assert "an upload failed" in capsys.readouterr().err


def store_of(tmp_path: Path, name: str) -> Store:
    return Store("s3://bucket/p", tmp_path / name)


def add_record(store: Store, name: str, seed: int, miou: float = 50.0) -> Path:
    folder = store.folder(name, "d" * 12, seed)
    counts = PerImage(("b",), *(np.ones((1, 3), dtype=np.int64) for _ in range(3)))
    evaluation = {"name": "val-single", "digest": "e", "miou": miou, "iou": [50.0], "written": "1"}
    with store.work(folder):
        Store.write_evaluation(folder, counts, evaluation)
        write(folder, "checkpoint/last.pt", "weights")
        data = {"name": name, "seed": seed, "digest": "d" * 12, "status": "finished", "recipe": {}}
        Store.write_record(folder, data)
    return folder


def test_readers_list_once_and_bring_what_is_new_but_no_checkpoints(tmp_path, files):
    writer, reader = store_of(tmp_path, "a"), store_of(tmp_path, "b")
    for name, seed in (("m/one", 0), ("m/one", 10), ("n/two", 0)):
        add_record(writer, name, seed)
    files.done.clear()
    assert [(r.name, r.seed) for r in reader.records("m/*")] == [("m/one", 0), ("m/one", 10)]
    assert [what for what, _ in files.done].count("get_file_info") == 1
    fetched = [path for what, path in files.done if what == "open_input_stream"]
    assert len(fetched) == len(set(fetched)) == 2 * 3
    assert not any("checkpoint" in path or "/n/two/" in path for path in fetched)
    files.done.clear()
    assert reader.get(reader.folder("n/two", "d" * 12, 0)).name == "n/two", "brought when it is asked for"
    assert "get_file_info" not in [what for what, _ in files.done], "and not listed again"
    assert next(reader.records()).evaluations["val-single"].per_image.ids == ("b",)
    files.done.clear()
    assert len(list(reader.records())) == 3
    assert [what for what, _ in files.done] == ["get_file_info"]
    add_record(writer, "m/one", 0, miou=60.0)
    assert next(reader.records()).evaluations["val-single"].miou == 60.0
    sizes = reader.sizes(reader.folder("m/one", "d" * 12, 0))
    assert sizes["checkpoint/last.pt"] == len("weights")


def test_what_was_deleted_in_the_store_does_not_appear(tmp_path, files):
    writer, reader = store_of(tmp_path, "a"), store_of(tmp_path, "b")
    first, second = add_record(writer, "m/one", 0), add_record(writer, "m/one", 1)
    assert len(list(reader.records())) == 2
    name = first.relative_to(writer.root).as_posix()
    files.base.delete_dir(f"bucket/p/{name}")
    evaluation = f"{second.relative_to(writer.root).as_posix()}/evaluations/val-single-e/evaluation.json"
    files.base.delete_file(f"bucket/p/{evaluation}")
    (record,) = reader.records()
    assert (record.seed, record.evaluations) == (1, {})
    for store in (reader, writer):
        store.refresh("*")
        assert store.get(store.folder("m/one", "d" * 12, 0)) is None
    with writer.work(first):
        assert contents(first) == {}, "a trial that was deleted starts afresh"


def test_a_reader_leaves_alone_what_is_being_worked_on(tmp_path, files, monkeypatch):
    monkeypatch.setattr(remote, "_PATIENCE", 0.05)
    writer, other = store_of(tmp_path, "a"), store_of(tmp_path, "b")
    reader = Mirror("s3://bucket/p", writer.mirror.place)  # another process of the same machine
    folder = add_record(writer, "m/one", 0)
    with writer.work(folder):
        write(folder, "history.csv", "new")
        add_record(other, "m/one", 0, miou=70.0)  # against the rule of one driver
        reader.refresh("*")
        assert (folder / "history.csv").read_text() == "new"
    with pytest.raises(UserError, match="another process"), writer.work(folder):
        reader.work(folder).__enter__()


def test_one_driver_at_a_time(tmp_path, files, monkeypatch):
    store = Files("s3://bucket/p")
    with only_driver(store):
        held = json.loads(files.read("driver.json"))
        assert held["pid"] == os.getpid()
        monkeypatch.setattr(driver_claim.os, "getpid", lambda: held["pid"] + 100_000_000)
        with pytest.raises(UserError, match="another driver") as caught, only_driver(store):
            pass
        assert "driver.json" in str(caught.value)
        monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        files.read("driver.json")


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({"pid": 2**22 + 12345}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "beat": 0}, True),
    ],
)
def test_a_dead_driver_is_taken_over_from(files, change, free, monkeypatch):
    monkeypatch.setattr(object_store, "connect", lambda uri: (files, "bucket/p"))
    store = Files("s3://bucket/p")
    with only_driver(store):
        left = json.loads(files.read("driver.json"))
    store.write("driver.json", json.dumps({**left, "id": "other", **change}).encode())
    if free:
        with only_driver(store):
            pass
    else:
        with pytest.raises(UserError, match="elsewhere"), only_driver(store):
            pass


# --- a real protocol ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URI of an empty prefix on an S3 server: of ``$WSSS_S3``, else on moto's where that is installed."""
    own = f"{os.getpid()}-{time.time_ns()}"
    if place := os.environ.get("WSSS_S3"):
        base, _, query = place.partition("?")
        yield f"{base.rstrip('/')}/{own}?{query}".rstrip("?")
        return
    server = pytest.importorskip("moto.server", reason="set WSSS_S3 to a URI, or install moto[server]")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    bucket = pyarrow.fs.S3FileSystem(
        access_key="k",
        secret_key="s",
        endpoint_override=f"{host}:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    bucket.create_dir("bucket")
    yield f"s3://k:s@bucket/{own}?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    running.stop()


def test_an_s3_server_keeps_what_it_is_given(s3, tmp_path, capsys):
    a, b = Store(s3, tmp_path / "a"), Store(s3, tmp_path / "b")
    with a.only_driver():
        with pytest.raises(UserError, match="another driver"), only_driver(_Stranger(s3)):
            pass
        folder = add_record(a, "m/one", 1)
        add_record(a, "m/one", 10)
        with a.work(folder):
            write(folder, "checkpoint/last.pt", "x" * 12_000_000)  # more than one part
            a.save(folder)
    assert [r.seed for r in b.records()] == [1, 10]
    assert set(b.sizes(b.folder("m/one", "d" * 12, 1))) == names_below(folder), "seed-1 is not seed-10"
    other = b.folder("m/one", "d" * 12, 1)
    with b.work(other):
        assert names_below(other) == names_below(folder)
        assert (other / "checkpoint/last.pt").stat().st_size == 12_000_000
    assert "driver.json" not in Files(s3).listing()
    missing = s3.replace("@bucket/", "@no-such-bucket/")
    if missing != s3:
        assert wsss("leaderboard", "--results", missing) == 2
        assert "no such bucket" in capsys.readouterr().err


class _Stranger(Files):
    """The same store, seen by a driver on another machine."""

    def read(self, name: str) -> bytes | None:
        return json.dumps({**json.loads(super().read(name) or b"{}"), "host": "elsewhere"}).encode()


# --- whole runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder_record(tmp_path_factory, small):
    """The record of an undisturbed run into a folder."""
    results = tmp_path_factory.mktemp("folder")
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    (record,) = Store(results).records()
    return record


@pytest.fixture(scope="module")
def bucket(tmp_path_factory, small) -> str:
    """The URI of a store that holds the same run."""
    uri = (tmp_path_factory.mktemp("bucket") / "prefix").as_uri()
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", uri) == 0
    return uri


def numbers(record) -> tuple:
    evaluation = record.evaluations["val-single"]
    return record.digest, evaluation.data["iou"], evaluation.per_image.intersection.tolist()


def test_a_run_leaves_the_same_record_under_a_uri(bucket, folder_record, tmp_path, small, capsys):
    place = Path(bucket.removeprefix("file://"))
    (stored,) = Store(place).records()  # a file:// store is a folder after all
    assert numbers(stored) == numbers(folder_record)
    assert names_below(stored.path) == {n for n in names_below(folder_record.path) if n != "trial.lock"}
    assert not (place / "driver.json").exists()
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", bucket) == 0
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()} == before
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", bucket, "--dry-run") == 0
    assert "finished" in capsys.readouterr().out


def test_another_machine_reads_a_uri(bucket, folder_record, tmp_path, small, monkeypatch, capsys):
    copy = (tmp_path / "copy").as_uri()
    shutil.copytree(bucket.removeprefix("file://"), tmp_path / "copy")
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert wsss("leaderboard", "--results", copy, "--out", tmp_path / "out") == 0
    assert f"{folder_record.evaluations['val-single'].miou:.2f}" in capsys.readouterr().out
    assert not list((tmp_path / "cache" / "stores").rglob("last.pt"))
    assert wsss("compare", RECIPE, RECIPE, "--results", copy) in (0, 2)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(sorted((small / "mini" / "JPEGImages").iterdir())[0], pictures)
    arguments = [*TINY, "--results", copy, "--device", "cpu"]
    assert wsss("predict", RECIPE, pictures, "--out", tmp_path / "predicted", *arguments) == 0
    assert len(list((tmp_path / "predicted").glob("*.png"))) == 2
    arguments += ["--data-root", small]
    assert wsss("evaluate", RECIPE, "--protocol", "agmm-voc", *arguments) == 0
    (record,) = Store(tmp_path / "copy").records()
    assert set(record.evaluations) == {"val-single", "val-agmm-voc"}
    assert wsss("import", copy, "--results", (tmp_path / "imported").as_uri()) == 0
    (imported,) = Store(tmp_path / "imported").records()
    assert numbers(imported) == numbers(record)


@pytest.mark.slow
def test_a_run_killed_on_one_machine_goes_on_on_another(tmp_path, small, folder_record):
    place = tmp_path / "bucket"
    command = [sys.executable, "-m", "harness.cli", "run", RECIPE, *TINY, *ONE]
    command += ["--data-root", str(small), "--results", place.as_uri(), "--checkpoint-seconds", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shutil.copytree(os.environ["WSSS_CACHE"], tmp_path / "cache", ignore=shutil.ignore_patterns("stores"))
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**environment, "WSSS_CACHE": str(tmp_path / "cache")}
    )
    try:
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline:
            if list(place.glob("*/*/*/*/checkpoint/last.pt")):
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    assert list(place.glob("driver.json")), "a killed driver cannot take its claim back"
    assert not list(place.glob("*/*/*/*/record.json")), "the run was over before it could be killed"
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", place.as_uri()) == 0
    (record,) = Store(place).records()
    assert numbers(record) == numbers(folder_record)
    np.testing.assert_array_equal(record.history().to_numpy(), folder_record.history().to_numpy())
    assert record.data["resumed"] > 0


@pytest.mark.slow
def test_labels_of_another_recipe_come_through_the_store(tmp_path, small, monkeypatch):
    uri = (tmp_path / "bucket").as_uri()
    arguments = ["--set", "schedule.steps=2", *ONE, "--data-root", small]
    assert wsss("run", "pce/mini-image", *arguments, "--results", uri) == 0
    (source,) = Store(tmp_path / "bucket").records("cam/*")
    assert len(list((source.path / "pseudo_labels" / "train-cam").glob("*.png"))) == 16
    (first,) = Store(tmp_path / "bucket").records("pce/*")
    shutil.rmtree(first.path)
    monkeypatch.setenv(
        "WSSS_CACHE", str(tmp_path / "cache")
    )  # another machine has neither labels nor network
    assert wsss("run", "pce/mini-image", *arguments, "--results", uri) == 0
    (second,) = Store(tmp_path / "bucket").records("pce/*")
    assert numbers(second)[0] == numbers(first)[0]
    assert second.data["data"]["labels"]["content"] == first.data["data"]["labels"]["content"]


@pytest.mark.slow
def test_a_search_goes_on_on_another_machine(tmp_path, small, monkeypatch):
    place = tmp_path / "bucket"
    arguments = [
        "search",
        RECIPE,
        "--set",
        "schedule.steps=20",
        "--set",
        "batch.per_group=4",
        "--set",
        "crop=32",
    ]
    arguments += ["--set", "weights=none", "--sampler", "random", "--scheduler", "none", "--local"]
    arguments += ["--device", "cpu", "--data-root", small, "--results", place.as_uri()]
    assert wsss(*arguments, "--trials", 1) == 0
    (folder,) = place.glob("search/agmm/mini-scribble/*")
    first = json.loads((folder / "search.json").read_text())["trials"]
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    assert wsss(*arguments, "--trials", 2) == 0
    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert [t["state"] for t in trials] == ["finished", "finished"]
    assert trials[0] == first[0], "what was measured is not measured again"
    names = names_below(folder)
    assert {"optuna.log", "best.toml", "trials/0000/objective.json", "trials/0001/history.csv"} <= names
    assert not [n for n in names if "checkpoint" in n or n.endswith((".lock", "driver.json"))]
    assert list(Store(place.as_uri()).records()) == []


# --- mistakes ----------------------------------------------------------------------------------------

NOWHERE = "s3://k:s@bucket/p?scheme=http&endpoint_override=127.0.0.1:1&region=us-east-1"


@pytest.mark.parametrize(
    ("verb", "uri", "said"),
    [
        (["run", RECIPE, *ONE], "foo://bucket/x", "no filesystem is known for foo://"),
        (["predict", RECIPE, "x.jpg"], "foo://bucket/x", "no filesystem is known for foo://"),
        (["leaderboard"], "s3://bucket?unknown=1", "Unexpected"),
        (["report"], NOWHERE, "cannot be reached"),
    ],
)
def test_a_wrong_uri_gets_one_clear_message(verb, uri, said, capsys):
    assert wsss(*verb, "--results", uri) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "k:s@" not in message
    assert len(message.splitlines()) <= 6
    assert not Path(uri.partition("/")[0]).exists()


def test_a_missing_pyarrow_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    assert wsss("leaderboard", "--results", "s3://bucket/x") == 2
    message = capsys.readouterr().err
    assert "need pyarrow" in message
    assert "pip install pyarrow" in message


def test_a_missing_bucket_is_named(monkeypatch, tmp_path):
    base, _ = pyarrow.fs.FileSystem.from_uri("mock:///")
    monkeypatch.setattr(object_store, "connect", lambda uri: (Watched(base, "s3"), "bucket/p"))
    with pytest.raises(UserError, match="no such bucket"):
        mirror(tmp_path).refresh("*")


def test_a_mirror_that_was_damaged_is_filled_again(tmp_path, files):
    store = store_of(tmp_path, "a")
    folder = add_record(store, "m/one", 0)
    (folder / "record.json").unlink()
    (store.mirror.place / "state" / f"{TRIAL}.json").write_text("{")
    assert len(list(store.records())) == 1
    write_json(folder / "record.json", {"wrong": True})
    shutil.rmtree(store.mirror.place / "state")
    assert next(store.records()).name == "m/one"
