"""The store: whole files or none, counts that survive, schemas of the future refused."""

from __future__ import annotations

import json
import zipfile

import documents
import numpy as np
import pandas as pd
import pytest

from harness.basics.arrays import read_arrays
from harness.basics.errors import UserError
from harness.basics.files import whole_file, write_json
from harness.records.records import PerImage, Store


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with pytest.raises(KeyboardInterrupt), whole_file(target) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    with whole_file(target) as stream:
        stream.write("whole")
    with pytest.raises(ValueError, match="broken"), whole_file(target) as stream:
        stream.write("other")
        raise ValueError("broken")
    assert target.read_text() == "whole"


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"miou": float("nan")})
    assert not (tmp_path / "x.json").exists()


_EVALUATION = documents.evaluation(
    100 * (3 / 9 + 5 / 11 + 7 / 13) / 3, [300 / 9, 500 / 11, 700 / 13], images=2
)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "results")
    counts = PerImage(("b", "ä 1"), *(np.arange(6, dtype=np.int64).reshape(2, 3) + k for k in range(3)))
    for name, seed in (("m/one", 0), ("m/one", 1), ("n/two", 0)):
        folder = store.folder(name, "d" * 12, seed)
        Store.write_evaluation(folder, counts, _EVALUATION)
        Store.write_record(folder, documents.record(name, seed))
    return store, counts


def test_records_come_back_in_order_and_by_glob(store):
    records, counts = store
    assert [(r.name, r.seed) for r in records.records()] == [("m/one", 0), ("m/one", 1), ("n/two", 0)]
    assert [r.name for r in records.records("n/*")] == ["n/two"]
    evaluation = next(records.records()).evaluations["val-single"]
    assert evaluation.miou == _EVALUATION["miou"]
    np.testing.assert_array_equal(evaluation.iou, _EVALUATION["iou"])
    assert evaluation.per_image.ids == counts.ids
    for part in ("intersection", "predicted", "labelled"):
        np.testing.assert_array_equal(getattr(evaluation.per_image, part), getattr(counts, part))
        assert getattr(evaluation.per_image, part).dtype == np.int64


def test_a_trial_without_its_json_does_not_exist(store):
    records, _ = store
    folder = records.folder("m/one", "d" * 12, 1)
    (folder / "record.json").unlink()
    (folder / "evaluations" / "val-single-e" / "evaluation.json").unlink()
    assert [(r.name, r.seed) for r in records.records("m/*")] == [("m/one", 0)]
    assert records.get(folder) is None


def test_a_newer_schema_is_refused_with_the_remedy(store):
    records, _ = store
    file = records.folder("m/one", "d" * 12, 0) / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 999}))
    assert [r.seed for r in records.records("m/*")] == [1]
    (error,) = records.left_out.values()
    assert "newer" in error.brief
    assert str(file) in error.brief
    assert "update" in str(error)
    with pytest.raises(UserError, match="newer"):
        records.get(file.parent)


def test_a_record_without_history_has_an_empty_one(store):
    assert isinstance(next(store[0].records()).history(), pd.DataFrame)
    assert next(store[0].records()).history().empty


def test_arrays_are_those_that_numpy_reads(tmp_path):
    file = tmp_path / "x.npz"
    arrays = {
        "ids": np.array(["a", "zwölf"]),
        "small": np.arange(6, dtype=np.int64).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3), dtype=np.int32),
        "scalar": np.float32(1.5),
    }
    for save in (np.savez, np.savez_compressed):
        save(file, **arrays)
        found = read_arrays(file)
        with np.load(file) as expected:
            assert set(found) == set(expected.files)
            for name in expected.files:
                np.testing.assert_array_equal(found[name], expected[name])
                assert found[name].dtype == expected[name].dtype


def test_arrays_of_a_zip_file_with_a_comment_are_read_too(tmp_path):
    file = tmp_path / "x.npz"
    np.savez_compressed(file, a=np.arange(5), b=np.ones((2, 3)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"written by another tool"
    found = read_arrays(file)
    np.testing.assert_array_equal(found["a"], np.arange(5))
    np.testing.assert_array_equal(found["b"], np.ones((2, 3)))


def test_equal_members_are_inflated_once_and_cannot_be_written_to(tmp_path):
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for index, file in enumerate(files):
        np.savez_compressed(file, truth=np.arange(50), own=np.arange(50) + index)
    first, second = map(read_arrays, files)
    assert first["truth"] is second["truth"]
    assert not first["truth"].flags.writeable
    np.testing.assert_array_equal(second["own"], np.arange(50) + 1)


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "x.npz"
    np.savez(file, a=np.arange(100))
    data = bytearray(file.read_bytes())
    for damaged in (data[:100], data[:200] + b"\xff" + data[201:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged file") as caught:
            read_arrays(file)
        assert "x.npz" in str(caught.value)
