"""The whole leaderboard as one HTML file: no network, no other file, readable with and without sight.

Tables sort and filter with a little inline JavaScript; every figure is a button that opens the provenance
of its row; plots are inline SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leaderboards.judge.claims import Judged, p_text, verdict_counts
from leaderboards.rows.gathering import dataset_title
from leaderboards.rows.metrics import Metric
from leaderboards.rows.published import Published
from leaderboards.rows.row import Row
from leaderboards.rows.text import DASH, number
from leaderboards.write.columns import (
    BACKBONE,
    COMMIT,
    EVALUATION,
    METHOD,
    NOTES,
    RECIPE,
    WEAK_LABEL,
    Column,
    Section,
    meanings,
    missing_texts,
    places,
    recipe_text,
    sections,
    unasked_text,
)
from leaderboards.write.first_screen import chosen_plots, first_screen
from leaderboards.write.inline_plots import PLOT_WORDS, drawn, kind_of, sentence
from leaderboards.write.markup import (
    breakable,
    code_words,
    framed,
    html_escape,
    opener,
    part_of,
    row_tag,
    script_data,
    sort_value,
    table_head,
)
from leaderboards.write.pairs import comparison_view
from leaderboards.write.provenance_facts import compact

if TYPE_CHECKING:
    from leaderboards.plots.thumbnails import Look

_ASSETS = Path(__file__).parents[1] / "assets"

#: Rows of one table by class; `per_class.csv` has all of them.
MOST_BY_CLASS = 60

#: Columns of text that a phone has no room for: they stand in the provenance of each row.
MINOR = (BACKBONE.name, WEAK_LABEL.name, COMMIT.name)


def html_report(
    rows: Sequence[Row],
    judged: Sequence[Judged],
    known: Published,
    *,
    provenance: str,
    label: str = "",
    plots: Mapping[str, bytes] | None = None,
    parts: Sequence[Section] | None = None,
    look: Look | None = None,
    asked: Sequence[Metric] = (),
) -> str:
    """The page.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`.
        judged: from :func:`leaderboards.judge.claims.judge`.
        known: published cells.
        provenance: how many records, which code.
        label: stands behind the title, such as ``quick run``.
        plots: file stem to SVG, or PNG where it starts like one.
        parts: the :func:`leaderboards.write.columns.sections` of the rows, where they are at hand.
        look: small pictures for the comparison of two rows, see :mod:`leaderboards.plots.thumbnails`.
        asked: metrics that the tables show.
    """
    places_of_rows = {id(row): index for index, row in enumerate(rows)}
    parts = sections(rows) if parts is None else parts
    plots = plots or {}

    def tables(*kinds: str) -> str:
        return "".join(_section(part, places_of_rows) for part in parts if part.kind in kinds)

    overviews, picture = chosen_plots(rows, plots)
    above = {*overviews, picture}
    missing = tables("holes")
    rest = unasked_text(rows)
    content = [
        ("overview", "Overview", first_screen(rows, judged, plots, places_of_rows)),
        ("tables", "Tables", tables("scores")),
        ("classes", "By class", _by_class(rows, places_of_rows)),
        ("plots", "Plots", _plots({k: v for k, v in plots.items() if k not in above})),
        ("compare", "Compare", comparison_view(rows, look)),
        ("claims", "Claims", _claims(judged, rows) if judged else ""),
        ("labels", "Pseudo labels", tables("pseudo labels")),
        ("cost", "Cost", tables("cost")),
        ("old", "Stale", _folded("rows that no longer say what their recipes say", tables("stale"))),
        ("missing", "Not run", _folded("what was not run", missing) + (f"<p>{rest}.</p>" if rest else "")),
        ("columns", "What the columns mean", _meanings(asked)),
    ]
    present = [part for part in content if part[2]]
    kinds = {"tables": "scores", "labels": "pseudo labels"}
    links = "".join(
        f'<li><a href="#{anchor}">{title}</a>{_below([p for p in parts if p.kind == kinds.get(anchor)])}</li>'
        for anchor, title, _ in present
    )
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{_tools(anchor, rows, judged)}{text}</section>'
        for anchor, title, text in present
    )
    facts = script_data(compact(rows, known))
    title = "wsss-bench leaderboard" + (f" ({html_escape(label)})" if label else "")
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
<a class="skip" href="#main">Skip to the figures</a>
<header>
<h1>{title}</h1>
<p class="notes">{html_escape(provenance)} Every underlined figure opens its provenance.</p>
<noscript><p>Sorting, filtering, provenance and plots further down need JavaScript; all figures stand in
the tables, all plots beside this page.</p></noscript>
</header>
<div class="frame">
<nav class="toc" aria-label="Contents"><ul>{links}</ul></nav>
<main id="main">{body}</main>
</div>
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


def _below(parts: Sequence[Section]) -> str:
    """Links to the tables of a part of the page; the data set is named where there are several."""
    names = {part.rows[0].dataset for part in parts}
    items = []
    for part in parts:
        row = part.rows[0]
        short = row.supervision if len(names) == 1 else f"{dataset_title(row.dataset)}, {row.supervision}"
        items.append(f'<li><a href="#{part.id}">{html_escape(short)}</a></li>')
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _folded(words: str, text: str) -> str:
    """Something that few look for, behind a line that names and counts it."""
    if not text:
        return ""
    return f"<details><summary>{text.count('<tr class=')} {words}</summary>{text}</details>"


def _tools(anchor: str, rows: Sequence[Row], judged: Sequence[Judged]) -> str:
    """Fields that filter rows, above the first tables."""
    if anchor != "tables":
        return ""
    verdicts = sorted({row.verdict for row in rows if row.n} | {j.verdict for j in judged})
    options = "".join(f'<option value="{v}">{v}</option>' for v in verdicts)
    return (
        '<div class="tools" role="search">'
        '<label>Filter rows of all tables<input id="words" type="search" autocomplete="off"></label>'
        f'<label>Verdict<select id="verdict"><option value="">all</option>{options}</select></label>'
        '<output id="shown" role="status"></output></div>'
    )


# --- tables ----------------------------------------------------------------------------------------------


def _cell(column: Column, row: Row, text: str, index: int, place: int, minor: bool) -> str:
    text = breakable(text)
    if column is METHOD:
        return f'<th scope="row">{text}</th>'
    opens = (column.value is not None and text != DASH) or column is RECIPE
    shown = opener(text, index) if opens else text
    if place in (1, 2):
        shown = f'<span class="{"first" if place == 1 else "second"}">{shown}</span>'
    if column.value is not None:
        return f'<td class="r" data-v="{sort_value(column.value(row))}">{shown}</td>'
    if column.name == "Verdict":
        return f'<td><span class="v-{row.verdict.replace(" ", "-")}">{text}</span></td>'
    classes = "wrap" if column.name in ("Recipe", "Weak label", "Machine") else ""
    classes = f"{classes} minor".strip() if minor else classes
    return f'<td class="{classes}">{shown}</td>' if classes else f"<td>{shown}</td>"


def _section(section: Section, indices: Mapping[int, int]) -> str:
    layout, ranked = section.layout, places(section)
    shown = [(i, section.columns[i]) for i in layout.columns]
    minor = {*MINOR, *([EVALUATION.name] if len({row.evaluation for row in section.rows}) == 1 else [])}
    noted = bool(layout.notes)
    body = []
    for number_in_table, (row, texts) in enumerate(zip(section.rows, section.texts, strict=True)):
        number = indices[id(row)]
        cells = [
            _cell(c, row, texts[i], number, ranked.get((number_in_table, i), 0), c.name in minor)
            for i, c in shown
        ]
        if noted:
            cells.append(f"<td>{', '.join(map(str, layout.numbers[number_in_table]))}</td>")
        words = [row.title, row.recipe, row.overrides, row.backbone, row.dataset, row.supervision]
        body.append(
            row_tag(row.verdict, [*words, row.evaluation, row.weak_label], indices[id(row)])
            + "".join(cells)
            + "</tr>"
        )
    columns = [column for _, column in shown]
    names = [(c.name, c.value is not None) for c in columns] + ([(NOTES, False)] if noted else [])
    caption = f"{len(section.rows)} row{'' if len(section.rows) == 1 else 's'}"
    caption += f"; none has a figure for: {html_escape(', '.join(layout.empty))}" if layout.empty else ""
    said = "".join(f"<li>{code_words(text)}</li>" for text in layout.said)
    below = f'<ul class="notes">{said}</ul>' if said else ""
    listed = "".join(f"<li>{code_words(note)}</li>" for note in layout.notes)
    below += f'<ol class="notes">{listed}</ol>' if noted else ""
    if section.missing:
        missing = missing_texts(section.missing, section.rows)
        items = "".join(f"<li>{html_escape(name)}</li>" for name in missing)
        below += f'<details class="notes"><summary>{len(missing)} not run</summary><ul>{items}</ul></details>'
    table = framed(section.title, caption, table_head(names, minor), body)
    return part_of(f'<h3 id="{section.id}">{html_escape(section.title)}</h3>{table}{below}')


# --- claims ----------------------------------------------------------------------------------------------


def _claims(judged: Sequence[Judged], rows: Sequence[Row]) -> str:
    names = [
        ("Claim", False), ("Verdict", False), ("Statement", False), ("Recipe", False), ("should lie", False),
        ("n", True), ("Difference", True), ("95 % interval", True), ("Margin", True),
        ("p images (Holm)", True), ("p seeds (Holm)", True), ("Notes", False),
    ]  # fmt: skip
    body = []
    standing = {
        (row.recipe, row.evaluation): index
        for index, row in enumerate(rows)
        if row.n and not row.overrides and row.verdict not in ("stale", "not run")
    }

    def recipe(name: str, evaluation: str) -> str:
        index = standing.get((name, evaluation))
        return html_escape(name) if index is None else opener(html_escape(name), index)

    ran = [j for j in judged if j.verdict != "not run"]
    for j in ran:
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
        notes = "; ".join(j.notes)
        body.append(
            row_tag(j.verdict, [claim.id, claim.statement, pair.better, pair.worse])
            + f'<th scope="row">{html_escape(claim.id)}</th>'
            + f'<td><span class="v-{j.verdict.replace(" ", "-")}">{j.verdict}</span></td>'
            + f'<td class="wide">{html_escape(claim.statement)} <small>({html_escape(origin)})</small></td>'
            + f"<td>{recipe(pair.better, pair.evaluation)}</td>"
            + f"<td>{pair.relation} {recipe(pair.worse, pair.evaluation)}</td>"
            + "".join(
                f'<td class="r" data-v="{sort_value(v)}">{html_escape(text)}</td>' for v, text in figures
            )
            + f'<td class="wide">{code_words(notes)}</td></tr>'
        )
    caption = f"{verdict_counts(judged)}. Differences in points of mIoU, intervals over images and seeds."
    table = framed("Claims", caption, table_head(names), body) if ran else f"<p>{verdict_counts(judged)}.</p>"
    holes = "".join(
        f"<dt>{html_escape(j.claim.id)}</dt><dd>"
        f"{html_escape(j.pair.better)} {j.pair.relation} {html_escape(j.pair.worse)}"
        + (f": <code>{html_escape(j.command)}</code></dd>" if j.command else "</dd>")
        for j in judged
        if j.verdict == "not run"
    )
    number_of = len(judged) - len(ran)
    return table + (
        f"<details><summary>{number_of} not run</summary><dl>{holes}</dl></details>" if holes else ""
    )


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
        head = table_head(
            [("Method", False), ("Recipe", False), *((name, True) for name in ("mean", *classes))]
        )
        table = framed(title, f"percent, mean over the seeds where a class occurs{more}", head, body)
        parts.append(part_of(f"<h3>{html_escape(title)}</h3>{table}"))
    return "".join(parts)


def _class_line(row: Row, index: int, values: np.ndarray, best: np.ndarray, several: bool) -> str:
    cells = []
    for value, top in zip(values.tolist(), best.tolist(), strict=True):
        text = "absent" if math.isnan(value) else f"{value:.1f}"
        mark = ' class="r first"' if several and value == top else ' class="r"'
        cells.append(f'<td{mark} data-v="{sort_value(value)}">{text}</td>')
    recipe = opener(breakable(recipe_text(row)), index)
    head = f'<th scope="row">{breakable(row.title)}</th><td class="wrap">{recipe}</td>'
    return (
        row_tag(row.verdict, [row.title, row.recipe, row.overrides, row.supervision], index)
        + head
        + "".join(cells)
        + "</tr>"
    )


# --- plots and words ---------------------------------------------------------------------------------------


def _plots(plots: Mapping[str, bytes]) -> str:
    parts = []
    for kind, words in PLOT_WORDS.items():
        figures = [drawn(stem, data) for stem, data in plots.items() if kind_of(stem) == kind]
        if figures:
            heading = f'<h3 id="plots-{kind}">{sentence(words)}</h3>'
            parts.append(f'{heading}<div class="plots">{"".join(figures)}</div>')
    return "".join(parts)


def _meanings(asked: Sequence[Metric]) -> str:
    entries = "".join(
        f"<dt>{html_escape(name)}</dt><dd>{code_words(text)}</dd>" for name, text in meanings(asked)
    )
    return f"<dl>{entries}</dl>"
