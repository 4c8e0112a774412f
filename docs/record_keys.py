"""Writes what ``record.json`` and ``evaluation.json`` hold, from their types: tables for people into
``records.md``, JSON schemas for programs into ``schema/``. Run it after a change of
``harness/records/documents.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.records.documents import SCHEMA, Document, EvaluationDocument, RecordDocument

HERE = Path(__file__).parent
DOCUMENTS = {"record.json": RecordDocument, "evaluation.json": EvaluationDocument}
BEGIN, END = "<!-- keys: written by record_keys.py -->\n", "<!-- end of keys -->\n"
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


def written() -> dict[Path, str]:
    """The files, as they should be."""
    page = HERE / "records.md"
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    files = {page: head + BEGIN + tables() + END + rest.partition(END)[2]}
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
