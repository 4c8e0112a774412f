"""The whole leaderboard as one HTML file: no network, no other file, readable with and without sight.

Tables sort and filter with a little inline JavaScript; every figure is a button that opens the provenance
of its row; plots are inline SVG.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape as escape_always
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from leaderboards.claims import Judged, count, p_text
from leaderboards.columns import (
    BACKBONE,
    COMMIT,
    EVALUATION,
    METHOD,
    MIOU,
    NOTES,
    RECIPE,
    WEAK_LABEL,
    Column,
    Section,
    explained,
    missing_texts,
    places,
    recipe_text,
    sections,
)
from leaderboards.gathering import dataset_title
from leaderboards.provenance_facts import compact
from leaderboards.published import Published
from leaderboards.row import Row
from leaderboards.text import DASH, number

_ASSETS = Path(__file__).with_name("assets")

#: Rows of one table by class; `per_class.csv` has all of them.
MOST_BY_CLASS = 60

#: Columns of text that a phone has no room for: they stand in the provenance of each row.
MINOR = (BACKBONE.name, WEAK_LABEL.name, COMMIT.name)

#: What a kind of plot shows, for those who do not see it.
PLOT_WORDS = {
    "per-class": "IoU by class",
    "difference": "difference to the baseline by class",
    "overview": "mIoU of every method and seed by supervision",
    "seeds": "mIoU of every seed",
    "boundary": "mIoU against distance to object boundaries",
    "published": "published against reproduced mIoU",
    "annotation": "mIoU against annotation time",
    "cost": "mIoU against training time, memory and parameters",
    "curves": "losses over training",
    "qualitative": "predictions and their errors on the same pictures",
}


def html_report(
    rows: Sequence[Row],
    judged: Sequence[Judged],
    known: Published,
    *,
    provenance: str,
    label: str = "",
    plots: Mapping[str, bytes] | None = None,
    parts: Sequence[Section] | None = None,
) -> str:
    """The page.

    Args:
        rows: from :func:`leaderboards.tables.leaderboard`.
        judged: from :func:`leaderboards.claims.judge`.
        known: published cells.
        provenance: how many records, which code.
        label: stands behind the title, such as ``quick run``.
        plots: file stem to SVG, or PNG where it starts like one.
        parts: the :func:`leaderboards.columns.sections` of the rows, where they are at hand.
    """
    places_of_rows = {id(row): index for index, row in enumerate(rows)}
    parts = sections(rows) if parts is None else parts
    tables = [_links(parts, label), *(_section(section, places_of_rows) for section in parts)]
    classes = _by_class(rows, places_of_rows)
    drawn = _plots(plots or {})
    content = [
        ("claims", "Claims", _claims(judged, rows)) if judged else None,
        ("tables", "Tables", "".join(tables)),
        ("classes", "By class", classes) if classes else None,
        ("plots", "Plots", drawn) if drawn else None,
        ("columns", "What the columns mean", _meanings()),
    ]
    present = [part for part in content if part is not None]
    links = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title, _ in present)
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{text}</section>' for anchor, title, text in present
    )
    verdicts = sorted({row.verdict for row in rows} | {j.verdict for j in judged})
    options = "".join(f'<option value="{v}">{v}</option>' for v in verdicts)
    facts = script_data(compact(rows, known))
    title = "wsss-bench leaderboard" + (f" ({escape(label)})" if label else "")
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the tables</a>
<header>
<h1>{title}</h1>
<p>{escape(provenance)} Every underlined figure opens its provenance.</p>
<noscript><p>Sorting, filtering and provenance need JavaScript; all figures stand below.</p></noscript>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<div class="tools" role="search">
<label>Filter rows<input id="words" type="search" autocomplete="off"></label>
<label>Verdict<select id="verdict"><option value="">all</option>{options}</select></label>
<output id="shown" role="status"></output>
</div>
<main id="main">{body}</main>
<footer><p class="notes">Generated: do not edit.</p></footer>
<dialog id="provenance" aria-labelledby="provenance-title">
<form method="dialog"><button class="close">Close</button></form>
<h2 id="provenance-title"></h2>
<div></div>
</dialog>
<script type="application/json" id="facts">{facts}</script>
<script>
{script}</script>
</body>
</html>
"""


_MARKUP = re.compile("[&<>\"']")


#: What could end a script, open a comment in it, or end a line of JavaScript.
_IN_SCRIPT = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_SCRIPT = re.compile(f"[{''.join(_IN_SCRIPT)}]")


def script_data(value: Any) -> str:
    """JSON that a ``<script>`` element may hold, whatever text is in it."""
    return _SCRIPT.sub(lambda match: _IN_SCRIPT[match.group()], orjson.dumps(value).decode())


def escape(text: str, quote: bool = True) -> str:
    """``html.escape``; most cells have nothing to escape, and are many."""
    return escape_always(text, quote) if _MARKUP.search(text) else text


# --- tables ----------------------------------------------------------------------------------------------


def _code_words(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _value(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _heads(names: Sequence[tuple[str, bool]], minor: Collection[str] = ()) -> str:
    """Head cells that sort; a name and whether its column holds numbers. Minor ones are hidden on phones."""
    cells = []
    for name, numeric in names:
        kind = ' data-kind="number"' if numeric else ""
        classes = " ".join([*(["r"] if numeric else []), *(["minor"] if name in minor else [])])
        kind += f' class="{classes}"' if classes else ""
        cells.append(
            f'<th scope="col" aria-sort="none"{kind}><button type="button">{escape(name)}</button></th>'
        )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _framed(title: str, caption: str, heads: str, body: Sequence[str]) -> str:
    label = escape(title, quote=True)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption><span>{caption}</span></caption>{heads}<tbody>{''.join(body)}</tbody></table></div>"
    )


def _row_tag(verdict: str, words: Sequence[str], index: int | None = None) -> str:
    """The start of a row that is filtered by its words; with a number, every cell opens those facts."""
    text = escape(" ".join([*words, verdict]).lower(), quote=True)
    opens = "" if index is None else f' data-row="{index}"'
    return f'<tr class="v-{verdict.replace(" ", "-")}" data-verdict="{verdict}" data-text="{text}"{opens}>'


def _opener(text: str, index: int) -> str:
    """A button that opens the provenance of a row; the text is escaped."""
    return f'<button type="button" data-row="{index}" aria-haspopup="dialog">{text}</button>'


def _cell(column: Column, row: Row, text: str, index: int, place: int, minor: bool) -> str:
    text = escape(text)
    if column is METHOD:
        return f'<th scope="row">{text}</th>'
    opens = (column.value is not None and text != DASH) or column is RECIPE
    shown = _opener(text, index) if opens else text
    if column is MIOU and place in (1, 2):
        shown = f'<span class="{"first" if place == 1 else "second"}">{shown}</span>'
    if column.value is not None:
        return f'<td class="r" data-v="{_value(column.value(row))}">{shown}</td>'
    if column.name == "Verdict":
        return f'<td><span class="v-{row.verdict.replace(" ", "-")}">{text}</span></td>'
    classes = "wrap" if column.name in ("Recipe", "Weak label", "Machine") else ""
    classes = f"{classes} minor".strip() if minor else classes
    return f'<td class="{classes}">{shown}</td>' if classes else f"<td>{shown}</td>"


def _links(parts: Sequence[Section], label: str) -> str:
    """Links to the tables, where there are several."""
    titles = {part.id: escape(part.title.removesuffix(f" ({label})")) for part in parts}
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in titles.items())
    return f'<nav aria-label="Tables"><ul>{links}</ul></nav>' if len(parts) > 1 else ""


def _section(section: Section, indices: Mapping[int, int]) -> str:
    layout, ranked = section.layout, places(section)
    shown = [(i, section.columns[i]) for i in layout.columns]
    minor = {*MINOR, *([EVALUATION.name] if len({row.evaluation for row in section.rows}) == 1 else [])}
    noted = bool(layout.notes)
    body = []
    for number_in_table, (row, texts) in enumerate(zip(section.rows, section.texts, strict=True)):
        place = ranked.get(number_in_table, 0)
        number = indices[id(row)]
        cells = [_cell(c, row, texts[i], number, place, c.name in minor) for i, c in shown]
        if noted:
            cells.append(f"<td>{', '.join(map(str, layout.numbers[number_in_table]))}</td>")
        words = [row.title, row.recipe, row.overrides, row.backbone, row.dataset, row.supervision]
        body.append(
            _row_tag(row.verdict, [*words, row.evaluation, row.weak_label], indices[id(row)])
            + "".join(cells)
            + "</tr>"
        )
    columns = [column for _, column in shown]
    names = [(c.name, c.value is not None) for c in columns] + ([(NOTES, False)] if noted else [])
    caption = f"{len(section.rows)} row{'' if len(section.rows) == 1 else 's'}"
    caption += f"; none has a figure for: {escape(', '.join(layout.empty))}" if layout.empty else ""
    said = "".join(f"<li>{_code_words(text)}</li>" for text in layout.said)
    below = f'<ul class="notes">{said}</ul>' if said else ""
    listed = "".join(f"<li>{_code_words(note)}</li>" for note in layout.notes)
    below += f'<ol class="notes">{listed}</ol>' if noted else ""
    if section.missing:
        missing = missing_texts(section.missing, section.rows)
        items = "".join(f"<li>{escape(name)}</li>" for name in missing)
        below += f'<details class="notes"><summary>{len(missing)} not run</summary><ul>{items}</ul></details>'
    table = _framed(section.title, caption, _heads(names, minor), body)
    return f'<h3 id="{section.id}">{escape(section.title)}</h3>{table}{below}'


# --- claims ----------------------------------------------------------------------------------------------


def _claims(judged: Sequence[Judged], rows: Sequence[Row]) -> str:
    names = [
        ("Claim", False), ("Statement", False), ("This recipe", False), ("should lie above", False),
        ("n", True), ("Difference", True), ("95 % interval", True), ("Margin", True),
        ("p images (Holm)", True), ("p seeds (Holm)", True), ("Verdict", False), ("Notes", False),
    ]  # fmt: skip
    body = []
    standing = {
        (row.recipe, row.evaluation): index
        for index, row in enumerate(rows)
        if row.n and not row.overrides and row.verdict not in ("stale", "not run")
    }

    def recipe(name: str, evaluation: str) -> str:
        index = standing.get((name, evaluation))
        return escape(name) if index is None else _opener(escape(name), index)

    for j in sorted(judged, key=lambda j: j.verdict == "not run"):
        claim, pair = j.claim, j.pair
        origin = ", ".join(part for part in (claim.paper, claim.place) if part)
        interval = DASH if math.isnan(j.low) else f"{number(j.low, sign=True)} to {number(j.high, sign=True)}"
        figures = [
            (min(j.n), " and ".join(dict.fromkeys(map(str, j.n)))),
            (j.difference, number(j.difference, sign=True)),
            (j.low, interval),
            (pair.bound, number(pair.bound, 1)),
            (j.p_images, p_text(j.p_images, j.p_images_holm)),
            (j.p_seeds, p_text(j.p_seeds, j.p_seeds_holm)),
        ]
        notes = "; ".join([*j.notes, *([f"run it with `{j.command}`"] if j.command else [])])
        body.append(
            _row_tag(j.verdict, [claim.id, claim.statement, pair.better, pair.worse])
            + f'<th scope="row">{escape(claim.id)}</th>'
            + f'<td class="wide">{escape(claim.statement)} <small>({escape(origin)})</small></td>'
            + f"<td>{recipe(pair.better, pair.evaluation)}</td><td>{recipe(pair.worse, pair.evaluation)}</td>"
            + "".join(f'<td class="r" data-v="{_value(v)}">{escape(text)}</td>' for v, text in figures)
            + f'<td><span class="v-{j.verdict.replace(" ", "-")}">{j.verdict}</span></td>'
            + f'<td class="wide">{_code_words(notes)}</td></tr>'
        )
    caption = f"{count(judged)}. Differences in points of mIoU, intervals over images and seeds."
    return _framed("Claims", caption, _heads(names), body)


# --- by class --------------------------------------------------------------------------------------------


def _by_class(rows: Sequence[Row], indices: Mapping[int, int]) -> str:
    standing = [r for r in rows if r.n and r.verdict not in ("stale", "not run")]

    def key(row: Row) -> tuple[str, str, str]:
        return row.dataset, row.supervision, row.evaluation

    parts = []
    for (dataset, supervision, evaluation), group in groupby(sorted(standing, key=key), key=key):
        members = sorted(group, key=lambda r: -r.mean)
        shown = members[:MOST_BY_CLASS]
        classes = list(shown[0].runs[0].data["classes"])
        shown = [row for row in shown if list(row.runs[0].data["classes"]) == classes]
        values = np.array([[row.mean, *row.class_spread[0]] for row in shown])
        best = np.nanmax(np.where(np.isnan(values), -np.inf, values), axis=0)
        body = [
            _class_line(row, indices[id(row)], own, best, len(shown) > 1)
            for row, own in zip(shown, values, strict=True)
        ]
        title = f"{dataset_title(dataset)}, {supervision} supervision, {evaluation}: IoU by class"
        more = f", the best {len(shown)} of {len(members)} rows" if len(members) > len(shown) else ""
        heads = _heads([("Method", False), ("Recipe", False), *((name, True) for name in ("mean", *classes))])
        parts.append(f"<h3>{escape(title)}</h3>")
        parts.append(_framed(title, f"percent, mean over the seeds where a class occurs{more}", heads, body))
    return "".join(parts)


def _class_line(row: Row, index: int, values: np.ndarray, best: np.ndarray, several: bool) -> str:
    cells = []
    for value, top in zip(values.tolist(), best.tolist(), strict=True):
        text = "absent" if math.isnan(value) else f"{value:.1f}"
        mark = ' class="r first"' if several and value == top else ' class="r"'
        cells.append(f'<td{mark} data-v="{_value(value)}">{text}</td>')
    recipe = _opener(escape(recipe_text(row)), index)
    head = f'<th scope="row">{escape(row.title)}</th><td class="wrap">{recipe}</td>'
    return (
        _row_tag(row.verdict, [row.title, row.recipe, row.overrides, row.supervision], index)
        + head
        + "".join(cells)
        + "</tr>"
    )


# --- plots and words ---------------------------------------------------------------------------------------


def _plots(plots: Mapping[str, bytes]) -> str:
    figures = []
    for stem, data in plots.items():
        kind = next((k for k in PLOT_WORDS if stem.startswith(k)), "")
        what = PLOT_WORDS.get(kind, "plot")
        where = stem.removeprefix(kind).strip("-").replace("-", " ")
        media = "image/png" if data.startswith(b"\x89PNG") else "image/svg+xml"
        source = f"data:{media};base64,{base64.b64encode(data).decode()}"
        text = f"{what[0].upper()}{what[1:]}: {where}"
        label = escape(text, quote=True)
        figures.append(
            f'<figure><img src="{source}" alt="{label}; the figures stand in the tables" loading="lazy" '
            f'decoding="async"><figcaption>{escape(text)}</figcaption></figure>'
        )
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _meanings() -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{_code_words(text)}</dd>" for name, text in explained())
    return f"<dl>{entries}</dl>"
