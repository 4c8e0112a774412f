"""The first screen of the page: what was compared, who leads and how sure that is, and what it looks like."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from leaderboards.judge.claims import Judged, verdict_counts
from leaderboards.judge.collapse import collapsed
from leaderboards.plots.drawing import standing, usual_evaluation
from leaderboards.plots.figures import reference_of
from leaderboards.rows.gathering import dataset_title
from leaderboards.rows.row import UNPUBLISHED, Row
from leaderboards.rows.text import DASH, mean_text, number
from leaderboards.write.columns import images_text, recipe_text
from leaderboards.write.inline_plots import drawn, kind_of
from leaderboards.write.markup import badge, breakable, drawn_interval, html_escape, opener

#: Rows of one small table; the tables below have all.
_MOST = 8
#: Claims listed before the others are folded away.
_CLAIMS = 8


def first_screen(
    rows: Sequence[Row], judged: Sequence[Judged], plots: Mapping[str, bytes], indices: Mapping[int, int]
) -> str:
    """The overview.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`.
        judged: from :func:`leaderboards.judge.claims.judge`.
        plots: file stem to SVG, or PNG where it starts like one.
        indices: number of each row (by ``id``) in the page's facts.
    """
    shown = [row for row in standing(rows) if row.output == "segmentation"]
    overviews, picture = chosen_plots(rows, plots)
    tables: list[str] = []
    for _, group in groupby(shown, key=lambda row: row.dataset):
        members = list(group)
        evaluation = usual_evaluation(members)
        tables.append(_tables([row for row in members if row.evaluation == evaluation], indices))
    beside = [drawn(stem, plots[stem], first=True) for stem in overviews]
    fallen = "".join(f"<li>{html_escape(one.text)}</li>" for one in collapsed(shown))
    if fallen:
        beside.append(f"<h3>Collapsed seeds</h3><ul class='notes'>{fallen}</ul>")
    beside.append(_claims(judged))
    if picture:
        text = '<p class="notes">Weak label, truth, predictions and errors.</p>'
        tables.append(f"<h3>Three pictures</h3>{drawn(picture, plots[picture], first=True)}{text}")
    facts = "".join(f"<div><dt>{name}</dt><dd>{html_escape(text)}</dd></div>" for name, text in _facts(shown))
    columns = f'<div class="two"><div>{"".join(tables)}</div><div>{"".join(beside)}</div></div>'
    return f'<dl class="facts">{facts}</dl>{columns}'


def chosen_plots(rows: Sequence[Row], plots: Mapping[str, bytes]) -> tuple[list[str], str]:
    """Stems of the plots of the first screen: one overview of each data set, and of pictures, the one that
    shows most."""
    shown = [row for row in standing(rows) if row.output == "segmentation"]
    names = []
    for dataset, group in groupby(shown, key=lambda row: row.dataset):
        names.append(f"overview-{dataset}-{usual_evaluation(list(group))}")
    pictures = [stem for stem in plots if kind_of(stem) == "qualitative"]
    most = max(pictures, key=lambda stem: len(plots[stem]), default="")
    return [stem for stem in names if stem in plots], most


def _facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run: data, methods, seeds, code, machine, time."""
    if not rows:
        return []
    data = dict.fromkeys(
        f"{dataset_title(row.dataset)}, {row.split} ({row.images} pictures{images_text(row)})" for row in rows
    )
    methods = {row.method for row in rows}
    seeds = sorted({seed for row in rows for seed in row.seeds})
    commits = list(dict.fromkeys(row.commit for row in rows if row.commit))
    machines = list(dict.fromkeys(row.cost.machine for row in rows if row.cost.machine))
    ended = sorted(str(r.data["ended"]) for row in rows for r in row.records if r.data.get("ended"))
    hours = sum(
        row.cost.seconds * row.n for row in {row.digest: row for row in rows}.values() if row.cost.known
    )
    spent = "" if math.isnan(hours) else f", {hours / 3600:.1f} h of training" if hours else ""
    facts = [
        ("Data", _few(list(data))),
        ("Compared", f"{len({(r.recipe, r.overrides) for r in rows})} recipes of {len(methods)} methods"),
        ("Seeds", ", ".join(map(str, seeds)) if len(seeds) <= 6 else f"{len(seeds)}"),
        ("Code", _few(commits)),
        ("Machine", _few(machines)),
        ("Run", (" to ".join(dict.fromkeys((ended[0][:10], ended[-1][:10]))) if ended else "") + spent),
    ]
    return [(name, text) for name, text in facts if text]


def _few(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 2} more" if len(texts) > 2 else ""
    return "; ".join(texts[:2]) + more


# --- who leads -----------------------------------------------------------------------------------------


def _tables(rows: Sequence[Row], indices: Mapping[int, int]) -> str:
    """One small table for each supervision of a data set, intervals on one scale."""
    known = [v for row in rows for v in (row.low, row.mean, row.high) if not math.isnan(v)]
    limits = (min(known, default=0.0), max(known, default=1.0))
    parts = []
    for supervision, group in groupby(rows, key=lambda row: row.supervision):
        members = sorted(group, key=lambda row: -row.mean)
        base = reference_of(members)
        title = f"{dataset_title(members[0].dataset)}, {supervision} supervision"
        several = Counter(row.title for row in members)
        printed = any(not math.isnan(row.published) for row in members[:_MOST])
        compared = len(members) > 1
        heads = [("Method", ""), ("mIoU (%)", "r"), ("95 % interval", "minor")]
        heads += [("to baseline", "r")] * compared + [("to print", "r")] * printed
        lines = []
        for row in members[:_MOST]:
            recipe = recipe_text(row).partition("/")[2] if several[row.title] > 1 or row.overrides else ""
            lines.append(_line(row, recipe, base if compared else None, printed, limits, indices))
        cells = "".join(f'<th scope="col" class="{kind}">{head}</th>' for head, kind in heads)
        said = [f'The best {_MOST} of {len(members)}: <a href="#tables">all</a>.'] * (len(members) > _MOST)
        if printed and any(row.verdict == UNPUBLISHED for row in members[:_MOST]):
            said.append(f"{DASH}: {UNPUBLISHED}.")
        more = f'<p class="notes">{" ".join(said)}</p>' if said else ""
        parts.append(
            f'<h3>{html_escape(title)}</h3><div class="scroll" role="region" tabindex="0" '
            f'aria-label="In short: {html_escape(title, quote=True)}"><table class="small">'
            f'<caption class="unseen">mean and standard deviation over seeds</caption>'
            f"<thead><tr>{cells}</tr></thead>"
            f"<tbody>{''.join(lines)}</tbody></table></div>{more}"
        )
    return "".join(parts)


def _line(
    row: Row,
    recipe: str,
    base: Row | None,
    printed: bool,
    limits: tuple[float, float],
    indices: Mapping[int, int],
) -> str:
    name = breakable(row.title) + (f" <small>{breakable(recipe)}</small>" if recipe else "")
    interval = "" if math.isnan(row.low) else f"{row.low:.1f} to {row.high:.1f}"
    drawing = drawn_interval(row.low, row.mean, row.high, limits)
    cells = [
        f'<th scope="row">{name}</th>',
        f'<td class="r">{opener(html_escape(mean_text(row)), indices[id(row)])}'
        f'<small class="narrow">{interval}</small></td>',
        f'<td class="minor">{drawing}<small>{interval}</small></td>',
    ]
    if base is not None:
        gap = "baseline" if row is base else number(row.mean - base.mean, sign=True)
        cells.append(f'<td class="r">{gap}</td>')
    if printed:
        judged = "" if row.verdict == UNPUBLISHED else f" {badge(row.verdict)}"
        cells.append(f'<td class="r print">{number(row.difference, sign=True)}{judged}</td>')
    return f'<tr data-row="{indices[id(row)]}">{"".join(cells)}</tr>'


# --- what the papers say -------------------------------------------------------------------------------


def _claims(judged: Sequence[Judged]) -> str:
    """Verdicts with their intervals drawn; what was not run is counted."""
    ran = [j for j in judged if j.verdict != "not run"]
    if not judged:
        return ""
    known = [abs(v) for j in ran for v in (j.low, j.high, j.difference) if not math.isnan(v)]
    most = max(known, default=1.0)
    items = [_claim(j, (-most, most)) for j in ran]
    folded = "".join(items[_CLAIMS:])
    more = (
        f"<details><summary>{len(items) - _CLAIMS} more</summary><ul>{folded}</ul></details>"
        if folded
        else ""
    )
    return (
        f'<h3>What the papers say</h3><p class="notes">{verdict_counts(judged)}: '
        f'<a href="#claims">all of them</a>. '
        f"Differences in points of mIoU, with 95 % intervals over pictures and seeds.</p>"
        f'<ul class="claims">{"".join(items[:_CLAIMS])}</ul>{more}'
    )


def _claim(j: Judged, limits: tuple[float, float]) -> str:
    words = f"{number(j.difference, sign=True)}"
    if not math.isnan(j.low):
        words += f" ({number(j.low, sign=True)} to {number(j.high, sign=True)})"
    drawing = drawn_interval(j.low, j.difference, j.high, limits, zero=j.pair.bound)
    return (
        f"<li>{badge(j.verdict)}<span>{html_escape(j.claim.statement)}</span>"
        f"<span class='figure'>{drawing}<small>{words}</small></span></li>"
    )
