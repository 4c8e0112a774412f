"""Writes what files hold and declarations take, from their types. Of ``record.json`` and ``evaluation.json``:
tables for people into ``records.md``, JSON schemas for programs into ``schema/``. Of what a package brings
beside methods (published cells, claims, protocols, metrics, plots): tables into ``keys.md``. Run it after a
change of ``harness/records/documents.py``, or of one of :data:`BROUGHT`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from harness.basics.schema import is_schema
from harness.data.base import DatasetInfo
from harness.recipes.protocols import Protocol
from harness.records.documents import SCHEMA, Document, EvaluationDocument, RecordDocument
from leaderboards.judge.statements import Claim, Pair
from leaderboards.plots.plotting import Plot
from leaderboards.rows.metrics import ClassCounts, Metric
from leaderboards.rows.published import Cell, CellSource
from leaderboards.rows.row import Row

HERE = Path(__file__).parent
DOCUMENTS = {"record.json": RecordDocument, "evaluation.json": EvaluationDocument}
BEGIN, END = "<!-- keys: written by record_keys.py -->\n", "<!-- end of keys -->\n"
#: What a package brings, by the place in ``keys.md``, with the keys that are filled in from elsewhere.
BROUGHT: dict[str, tuple[type, tuple[str, ...]]] = {
    "source": (CellSource, ()),
    "cell": (Cell, ("id", "source")),
    "claim": (Claim, ("id", "method")),
    "comparison": (Pair, ()),
    "protocol": (Protocol, ()),
    "metric": (Metric, ()),
    "counts": (ClassCounts, ()),
    "plot": (Plot, ()),
    "row": (Row, ("asked", "runs", "records")),
    "info": (DatasetInfo, ()),
}
_LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
_PLAIN = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema of a file."""
    found = DOCUMENTS[name].model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": name}


def _kind(value: dict[str, Any]) -> str:
    """The type of a value, in words."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(one) for one in value["anyOf"]))
    if "enum" in value:
        return " or ".join(f"`{one}`" for one in value["enum"])
    if "$ref" in value:
        return "object"
    if "prefixItems" in value:
        return "list of " + " and ".join(_kind(one) for one in value["prefixItems"])
    if value.get("type") == "array":
        return f"list of {_kind(value['items'])}"
    if value.get("type") == "object":
        inner = _named(value)
        return f"{_kind(inner)} by name" if isinstance(inner, dict) else "object"
    return _PLAIN.get(value.get("type", ""), "any")


def _inner(value: dict[str, Any]) -> tuple[str, str] | None:
    """The object that a value holds, with what stands for a name or a place in a list."""
    if "$ref" in value:
        return "", value["$ref"].rpartition("/")[2]
    for one in value.get("anyOf", ()):
        if (found := _inner(one)) is not None:
            return found
    for inside, step in ((value.get("items"), "[]"), (_named(value), ".*")):
        if isinstance(inside, dict) and (found := _inner(inside)) is not None:
            return step + found[0], found[1]
    return None


def _named(value: dict[str, Any]) -> Any:
    """What an object holds under every name; None where it has keys of its own."""
    return next(iter(value.get("patternProperties", {}).values()), value.get("additionalProperties"))


def rows(whole: dict[str, Any], part: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, type and meaning of everything in an object."""
    needed = set(part.get("required", ()))
    for name, value in part["properties"].items():
        kind = _kind(value) + ("" if name in needed or path else ", may lack")
        found = _inner(value)
        text = value.get("description") or (whole["$defs"][found[1]].get("description", "") if found else "")
        yield f"`{path}{name}`", kind, text.replace("\n", " ")
        if found is not None:
            step, inner = found
            yield from rows(whole, whole["$defs"][inner], f"{path}{name}{step}.")


def tables() -> str:
    """All keys of both files."""
    found = []
    for name in DOCUMENTS:
        schema = schema_of(name)
        found.append(f"\n## `{name}`\n\n| key | type | meaning |\n|---|---|---|\n")
        found += [f"| {key} | {kind} | {text} |\n" for key, kind, text in rows(schema, schema)]
    return "".join(found) + "\n"


def _of_files(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, what stands without it, and meaning of every key of a TOML table."""
    schema = pydantic.TypeAdapter(kind).json_schema()
    for field in dataclasses.fields(kind):
        value = schema["properties"][field.name]
        parts = [one for one in (value, *value.get("anyOf", ())) if "type" in one]
        told = [f"{word} {part[key]}" for part in parts for key, word in _LIMITS.items() if key in part]
        words = " ".join([_kind(value).replace(" or null", ""), *told])
        default = value.get("default")
        without = "needed" if field.name in schema.get("required", ()) else "none"
        if default not in (None, "", [], {}):
            without = f"`{json.dumps(default)}`"
        yield field.name, words, without, " ".join(value.get("description", "").split())


def _of_code(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """Argument, type, what stands without it, and meaning of every argument of a declaration in Python."""
    found = re.findall(r"^    ([\w, ]+): (.+?)(?=^    \w|\Z)", _attributes(kind), re.M | re.S)
    meanings = {name: text for names, text in found for name in names.split(", ")}
    for field in dataclasses.fields(kind):
        without = "needed" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        if field.default_factory is not dataclasses.MISSING:
            without = "none"
        text = " ".join(meanings.get(field.name, "").replace("``", "`").split())
        told = re.sub(r":\w+:`[~.]*([^`]+)`", r"`\1`", text)
        yield field.name, f"`{field.type}`", without, told[:1].upper() + told[1:]


def _attributes(kind: type) -> str:
    """The section on attributes of a class's docstring."""
    lines = (kind.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines)


def brought(place: str) -> list[tuple[str, str, str, str]]:
    """Key, type, what stands without it, and meaning of everything that a package writes at a place."""
    kind, filled_in = BROUGHT[place]
    return [row for row in (_of_files if is_schema(kind) else _of_code)(kind) if row[0] not in filled_in]


def _with_tables(text: str) -> str:
    """The page of keys, its tables written anew."""
    for place in BROUGHT:
        begin, end = f"<!-- {place}: written by record_keys.py -->\n", "<!-- end -->\n"
        head, found, after = text.partition(begin)
        cells = [[part.replace("|", r"\|") for part in row] for row in brought(place)]
        rows = "".join(f"| `{name}` | {' | '.join(rest)} |\n" for name, *rest in cells)
        table = f"\n| key | type | without it | meaning |\n|---|---|---|---|\n{rows}\n"
        text = head + found + table + end + after.partition(end)[2]
    return text


def written() -> dict[Path, str]:
    """The files, as they should be."""
    page = HERE / "records.md"
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    files = {page: head + BEGIN + tables() + END + rest.partition(END)[2]}
    keys = HERE / "keys.md"
    files[keys] = _with_tables(keys.read_text(encoding="utf-8"))
    for name in DOCUMENTS:
        file = HERE / "schema" / f"{name.removesuffix('.json')}-{SCHEMA}.schema.json"
        files[file] = json.dumps(schema_of(name), indent=1) + "\n"
    return files


def undocumented(kind: type[Document]) -> list[str]:
    """Keys without a description."""
    schema = kind.model_json_schema(by_alias=True)
    return [key for key, _, text in rows(schema, schema) if not text]


if __name__ == "__main__":
    for file, text in written().items():
        file.write_text(text, encoding="utf-8")
