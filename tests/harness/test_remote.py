"""Stores under a URI: order and number of uploads, failing filesystems, kills, mirrors that disagree."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import documents
import numpy as np
import pyarrow.fs
import pytest
from watched_store import Killed, Watched, names_below

from harness.basics.errors import UserError
from harness.basics.files import write_json
from harness.records import driver_claim, object_store, remote
from harness.records.driver_claim import only_driver
from harness.records.object_store import Files, is_uri, shown
from harness.records.records import PerImage, Store
from harness.records.remote import Mirror, for_work


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


def test_a_process_killed_at_any_moment_leaves_what_another_one_can_go_on_from(tmp_path, files):
    first = {**WHOLE, "record.json": "failed"}
    second = {name: f"{text}, new" for name, text in first.items()}
    one = mirror(tmp_path)
    with one.work(one.root / TRIAL):
        for name, text in first.items():
            write(one.root / TRIAL, name, text)
    rests_on = {
        "checkpoint/last.pt": {"history.csv", "checkpoint/best.pt"},
        "evaluations/e/evaluation.json": {"evaluations/e/per_image.npz", "checkpoint/last.pt"},
        "record.json": set(second),
    }
    start, moment, seen = mirror(tmp_path, "start"), 0, set()
    start.pull(start.root / TRIAL, lambda name: True)
    while "record.json" not in seen:
        for name in second:  # what the trial was before
            one.files.upload(start.root / TRIAL / name, f"{TRIAL}/{name}")
        place = f"moment {moment}"
        worker, other = mirror(tmp_path, place), mirror(tmp_path, f"{place}, elsewhere")
        try:
            with worker.work(worker.root / TRIAL):
                for name, text in second.items():
                    write(worker.root / TRIAL, name, text)
                files.alive = moment
        except Killed:
            pass
        files.alive = 10**9
        with other.work(other.root / TRIAL):
            got = {name: files.read(f"{TRIAL}/{name}").decode() for name in second}
            new = {name for name, text in got.items() if text == second[name]}
            assert all(got[name] == first[name] for name in set(got) - new), "each file is one of the two"
            for name, needed in rests_on.items():
                assert name not in new or needed <= new, f"{name} came before what it rests on"
            assert contents(other.root / TRIAL) == {n: t for n, t in got.items() if for_work(n)}
        seen, moment = new, moment + 1
    assert moment > len(second)


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
    counts = PerImage(("b",), *(np.full((1, 3), n, dtype=np.int64) for n in (int(miou), int(miou), 100)))
    with store.work(folder):
        Store.write_evaluation(folder, counts, documents.evaluation(miou, [miou] * 3, 1))
        write(folder, "checkpoint/last.pt", "weights")
        Store.write_record(folder, documents.record(name, seed))
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
    why = "set WSSS_S3 to a URI, or install moto[s3], flask and flask-cors"
    server = pytest.importorskip("moto.server", reason=why)
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


def test_an_s3_server_keeps_what_it_is_given(s3, tmp_path):
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
        with pytest.raises(UserError, match="no such bucket"):
            list(Store(missing, tmp_path / "c").records())


class _Stranger(Files):
    """The same store, seen by a driver on another machine."""

    def read(self, name: str) -> bytes | None:
        return json.dumps({**json.loads(super().read(name) or b"{}"), "host": "elsewhere"}).encode()


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
