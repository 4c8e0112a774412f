"""The page and the schemas of records say what is in them, and everything that is."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from harness.records.documents import EvaluationDocument, RecordDocument
from harness.records.records import Store
from leaderboards.judge.checking import BROUGHT
from tests.runs import ONE, RECIPE, TINY, wsss

DOCS = Path(__file__).parents[2] / "docs"
#: Not read by any reader; a recipe has as many as its method wants.
FREE = ("recipe.", "overrides.", "hardware.", "environment.packages.", "protocol.", "metadata.")


@pytest.fixture(scope="module")
def page() -> dict:
    return runpy.run_path(str(DOCS / "record_keys.py"))


def test_page_and_schemas_are_those_of_the_types(page: dict) -> None:
    for file, text in page["written"]().items():
        assert file.read_text(encoding="utf-8") == text, "run docs/record_keys.py"


@pytest.mark.parametrize("kind", [RecordDocument, EvaluationDocument])
def test_every_key_is_explained(page: dict, kind: type) -> None:
    assert page["undocumented"](kind) == []


def test_everything_that_a_package_writes_down_is_explained(page: dict) -> None:
    for place in page["BROUGHT"]:
        assert page["brought"](place)
        assert [key for key, _, _, text in page["brought"](place) if not text] == [], place


def test_every_group_of_entry_points_has_a_place_on_the_page_of_keys() -> None:
    text = (DOCS / "keys.md").read_text(encoding="utf-8")
    parts = {registry.group for registry in BROUGHT.values()} - {"wsss.methods", "wsss.recipes"}
    assert [group for group in sorted(parts) if f"(`{group}`)" not in text] == []


def test_every_key_that_a_run_writes_is_on_the_page(page: dict, small: Path, tmp_path: Path) -> None:
    assert (
        wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", tmp_path, "--name", "mine") == 0
    )
    (record,) = Store(tmp_path).records()
    (evaluation, *_) = record.evaluations.values()
    for name, data in (("record.json", record.data), ("evaluation.json", evaluation.data)):
        schema = page["schema_of"](name)
        known = {key.strip("`") for key, _, _ in page["rows"](schema, schema)}
        named = {key for key in known if key.endswith(".*") or ".*." in key}
        for key in _keys(json.loads(json.dumps(data))):
            free = key.startswith(FREE) or any(_fits(key, pattern) for pattern in named)
            assert free or key in known, f"{name}: {key} is not in harness/records/documents.py"


def _keys(values: dict, path: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        found.append(f"{path}{name}")
        found += _keys(value, f"{path}{name}.") if isinstance(value, dict) else []
    return found


def _fits(key: str, pattern: str) -> bool:
    """Whether a key is of a pattern, in which ``*`` stands for a name."""
    own, wanted = key.split("."), pattern.split(".")
    return any(
        len(own) == length and all(w in ("*", o) for o, w in zip(own, wanted[:length], strict=True))
        for length in range(1, len(wanted) + 1)
    )
