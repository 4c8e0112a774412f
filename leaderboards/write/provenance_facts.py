"""Where every figure of a row comes from, as titled lists of names and values for a reader."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboards.rows.published import Published
from leaderboards.rows.row import Row
from leaderboards.rows.text import DASH, mean_text, memory_text, number, time_text
from leaderboards.write.columns import images_text, interval_text, recipe_text

Facts = list[tuple[str, str]]
Parts = list[tuple[str, Facts]]


def facts_of(row: Row, known: Published) -> Parts:
    """Titled lists for one row: result, training, data, protocol, code and machine, published, notes."""
    parts: Parts = []
    if row.runs:
        parts += [
            ("Result", _result(row)),
            ("Training", _training(row)),
            ("Data", _data(row)),
            ("Protocol", _plain(row.runs[0].data["protocol"])),
            ("Code and machine", _code(row)),
        ]
    parts += [(f"Published: {cell_id}", _published(cell_id, known)) for cell_id in _cells(row, known)]
    if row.notes:
        parts.append(("Notes", [(str(i), note) for i, note in enumerate(row.notes, 1)]))
    return parts


def compact(rows: Sequence[Row], known: Published) -> dict[str, Any]:
    """Facts of all rows for the page; lists that rows share stand once, a row holds their number.

    Returns:
        ``rows``: title and parts, each a title with a list or a number; ``shared``: the lists.
    """
    shared: dict[tuple[tuple[str, str], ...], int] = {}
    found = []
    for row in rows:
        parts: list[tuple[str, Any]] = []
        for title, entries in facts_of(row, known):
            alone = title in ("Result", "Training", "Notes")
            parts.append((title, entries if alone else shared.setdefault(tuple(entries), len(shared))))
        found.append({"title": f"{row.label}: {row.recipe}, {row.evaluation}", "parts": parts})
    return {"rows": found, "shared": list(shared)}


def _cells(row: Row, known: Published) -> list[str]:
    """Cells that the row's evaluation cites."""
    if row.runs:
        cited = [*([row.source] if row.source else []), *row.runs[0].data["spec"]["cells"]]
    else:
        cited = [row.source] if row.source else []
    return [cell for cell in dict.fromkeys(cited) if cell in known.cells]


def _result(row: Row) -> Facts:
    seeds = ", ".join(f"seed {s}: {run.miou:.2f}" for s, run in zip(row.seeds, row.runs, strict=True))
    entries = [
        ("mIoU (%)", mean_text(row)),
        ("Seeds", seeds),
        ("95 % interval over images", interval_text(row)),
        ("Scored", f"{row.evaluation}{images_text(row)}, {row.images} images"),
        ("Difference", number(row.difference, sign=True)),
        ("Tolerance", number(row.tolerance)),
        ("Verdict", row.verdict),
    ]
    if row.output != "segmentation":
        shares = (("Coverage", row.coverage), ("Background", row.background))
        entries += [(name, f"{number(100 * value, 1)} %") for name, value in shares]
    return [(name, value) for name, value in entries if value and value != DASH]


def _training(row: Row) -> Facts:
    checkpoints = {run.data.get("checkpoint_sha256", "") for run in row.runs}
    ended = sorted(filter(None, (r.data.get("ended") for r in row.records)))
    entries = [
        ("Recipe", recipe_text(row)),
        ("Training digest", row.digest),
        ("Backbone", f"{row.backbone}, weights {row.weights}"),
        ("Weak label", row.weak_label),
        ("Selection", row.selection),
        ("Steps", number(row.cost.steps, 0)),
        ("Steps skipped in float16", _skipped(row)),
        ("Time of a seed", time_text(row.cost.seconds)),
        ("Peak memory", memory_text(row.cost.memory_mib)),
        ("Parameters", "" if math.isnan(row.cost.parameters) else f"{row.cost.parameters:,.0f}"),
        ("Ended", " to ".join(dict.fromkeys((ended[0], ended[-1]))) if ended else ""),
        ("Records", ", ".join("/".join(r.path.parts[-4:]) for r in row.records)),
        ("Checkpoints (SHA-256)", ", ".join(sorted(c[:16] for c in checkpoints if c))),
    ]
    return [(name, value) for name, value in entries if value and value != DASH]


def _skipped(row: Row) -> str:
    """How often gradients overflowed, and the scale that was left, seed by seed."""
    found = []
    for record in row.records:
        if record.data.get("recipe", {}).get("amp") != "fp16":
            continue
        curve = record.history()
        if len(curve) and {"amp.skipped", "amp.scale"} <= set(curve.columns):
            skipped, scale = curve["amp.skipped"].iloc[-1], curve["amp.scale"].iloc[-1]
            found.append(f"seed {record.seed}: {number(skipped, 0)}, scale {scale:,.5g} at the end")
    return "; ".join(found)


def _data(row: Row) -> Facts:
    from leaderboards.rows.gathering import data_identity

    if not row.records:
        return [("evaluation data (fingerprint)", row.runs[0].data["data_fingerprint"])]
    found = data_identity(row.records[0], row.runs[0])
    found.pop("code of other packages")  # stands beside the commit
    return [(f"{name} (fingerprint)", str(value)) for name, value in found.items() if value]


def _code(row: Row) -> Facts:
    if not row.records:
        return [("Origin", "predictions from outside")]
    environment = row.records[0].data.get("environment", {})
    packages = environment.get("packages", {})
    entries = [
        ("Commit", row.commit),
        ("Python", environment.get("python", "")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
        ("Machine", row.cost.machine),
    ]
    return [(name, value) for name, value in entries if value]


def _plain(values: Mapping[str, Any]) -> Facts:
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in values.items()
        if value is not None
    ]


def _published(cell_id: str, known: Published) -> Facts:
    cell = known.cells[cell_id]
    source = known.sources[cell.source]
    entries = [
        ("Value", f"none: {cell.reason}" if cell.value is None else f"{cell.value:g} % {cell.metric}"),
        ("Row", f"{cell.row} ({cell.variant})" if cell.variant else cell.row),
        ("Table", cell.table),
        ("Scored", f"{cell.dataset} {cell.split}, {cell.output}"),
        ("Backbone", cell.backbone or "not stated"),
        ("Protocol as printed", cell.protocol),
        ("Source", f"{source.title} ({source.kind})"),
        ("Where", ", ".join(p for p in (source.where, source.place) if p)),
        ("DOI", source.doi),
        ("arXiv", source.arxiv),
        ("Caveat", cell.notes),
    ]
    return [(name, value) for name, value in entries if value]
