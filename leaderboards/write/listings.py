"""Leaderboard, claims and comparisons as listings that fit the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.basics.listing import Styled, cells, columns, fitted_table, heading, prose, remark, state
from leaderboards.judge.claims import Judged, p_text, verdict_counts
from leaderboards.judge.comparison import Compared, difference_lines, metric_lines
from leaderboards.judge.differing import what_differs
from leaderboards.rows.metrics import Metric
from leaderboards.rows.row import Row
from leaderboards.rows.text import DASH, mean_text, number
from leaderboards.write.columns import (
    COST,
    PSEUDO_LABELS,
    SCORES,
    VERDICT,
    Column,
    Section,
    missing_texts,
    places,
    recipe_text,
    unasked_text,
)

#: Columns in the order in which they find room in a terminal; the first ones always do.
_WANTED = (
    "Recipe", "mIoU (%)", "Output", "Evaluation", "95 % interval", "Method", "n", "Difference", "Verdict",
    "Published", "Training", "Peak memory", "Full (%)", "Coverage (%)", "Images/s", "Parameters (M)",
    "Commit",
)  # fmt: skip
_KEPT = 3
#: So wide a column of names is, at least, before it wraps.
_NAME = 24
#: So many claims that were not run are listed with the commands that run them.
_FEW = 12


def leaderboard_listing(rows: Sequence[Row], parts: Sequence[Section]) -> str:
    """The tables of a leaderboard: what ran, best first, in as many columns as the terminal has room for.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`.
        parts: their :func:`leaderboards.write.columns.sections`.
    """
    texts = [_section(part) for part in parts if part.kind not in ("holes", "stale")]
    old = sum(len(part.rows) for part in parts if part.kind == "stale")
    if old:
        texts.append(
            prose(f"{old} stale row{'s are' if old > 1 else ' is'} left out: leaderboard.md says why")
        )
    untouched = [text for part in parts if part.kind == "holes" for text in missing_texts(part.rows)]
    if untouched:
        texts.append(f"{heading('not run')}\n{prose(', '.join(untouched))}")
    if rest := unasked_text(rows):
        texts.append(prose(f"{rest}: `wsss list recipes` names them"))
    return "\n\n".join(texts)


def _section(section: Section) -> str:
    layout, marks = section.layout, places(section)
    usual = {column.name for columns in (SCORES, PSEUDO_LABELS, COST) for column in columns}
    wanted = [*_WANTED[:2], *(c.name for c in section.columns if c.name not in usual), *_WANTED[2:]]
    shown = [i for i in layout.columns if section.columns[i].name in wanted]
    shown.sort(key=lambda i: wanted.index(section.columns[i].name))
    asked = [i for i in shown if section.columns[i].name not in usual]
    while len(shown) > _KEPT and _natural(section.texts, section.columns, shown) > columns():
        shown.pop()
    shown.sort()
    ranked = {i for _, i in marks}
    lines: list[list[Styled]] = []
    for place, texts in enumerate(section.texts):
        lines.append([])
        for i in shown:
            column, text, rank = section.columns[i], texts[i], marks.get((place, i), 0)
            if rank in (1, 2):
                lines[-1].append(Styled(f"{text} {'*' if rank == 1 else '+'}", {"bold": rank == 1}))
            elif i in ranked:
                lines[-1].append(Styled(f"{text}  "))  # figures stand below one another
            else:
                lines[-1].append(state(text) if column is VERDICT else Styled(text))
    right = [k for k, i in enumerate(shown) if section.columns[i].align == "right"]
    said = ["* best, + second"] if marks else []
    if lost := [section.columns[i].name for i in asked if i not in shown]:
        said.append(f"no room here for {', '.join(lost)}: leaderboard.md and leaderboard.csv have it")
    if section.missing:
        said.append(f"not run: {', '.join(missing_texts(section.missing, section.rows))}")
    body = fitted_table(lines, [section.columns[i].name for i in shown], right=right)
    return "\n".join([heading(section.title), body, *map(prose, said)])


def _natural(texts: Sequence[Sequence[str]], named: Sequence[Column], shown: Sequence[int]) -> int:
    """Columns that a table likes to have: long names wrap, and cost no other column its place."""
    most = max(_NAME, columns() // 3)
    return sum(max(len(named[i].name), *(min(cells(line[i]), most) for line in texts)) + 2 for i in shown)


def claims_listing(judged: Sequence[Judged]) -> str:
    """Every claim that was judged, as a sentence with its comparisons; the others are counted by command."""
    run = [j for j in judged if j.verdict != "not run"]
    holes = [j for j in judged if j.verdict == "not run"]
    texts = [heading(verdict_counts(judged))]
    for key in dict.fromkeys(j.claim.id for j in run):
        members = [j for j in run if j.claim.id == key]
        lines: list[list[str | Styled]] = [
            [
                state(j.verdict),
                j.pair.better,
                f"{j.pair.relation} {j.pair.worse}",
                number(j.difference, sign=True),
                interval(j.low, j.high),
                f"{min(j.n)}" if j.n[0] == j.n[1] else f"{j.n[0]}, {j.n[1]}",
            ]
            for j in members
        ]
        heads = ("verdict", "recipe", "should lie", "difference", "95 % interval", "n")
        notes = dict.fromkeys(note for j in members for note in j.notes)
        texts.append(
            "\n".join(
                [
                    prose(f"{key}: {members[0].claim.statement}", indent="  "),
                    fitted_table(lines, heads, right=(3, 4, 5), indent="  "),
                    *(prose(note, first="  - ", indent="    ") for note in notes),
                ]
            )
        )
    if 0 < len(holes) <= _FEW:
        texts.append(f"{heading('not run')}\n" + "\n".join(map(_hole, holes)))
    elif holes:
        names = ", ".join(dict.fromkeys(j.claim.id for j in holes))
        texts.append(f"{heading('not run')}\n{prose(f'{names}. What runs them stands in claims.md.')}")
        wrong = [j for j in holes if not j.command]  # no run mends these
        texts += ["\n".join(map(_hole, wrong))] if 0 < len(wrong) <= _FEW else []
    return "\n\n".join(texts)


def _hole(judged: Judged) -> str:
    """A comparison that was not run: what runs it, else why nothing can."""
    told = f"  {judged.command}" if judged.command else prose("; ".join(judged.notes), indent="  ")
    return f"{judged.claim.id}\n{told}"


def interval(low: float, high: float) -> str:
    """``+1.20 to +3.40``, or a dash."""
    return DASH if math.isnan(low) else f"{number(low, sign=True)} to {number(high, sign=True)}"


def comparison(found: Sequence[Compared], asked: Sequence[Metric] = ()) -> str:
    """Figures of every comparison, those of metrics asked for included, and its classes by difference."""
    texts = []
    for compared in found:
        a, b, judged = compared.a, compared.b, compared.judged
        over = "images and seeds" if not math.isnan(judged.seed_error) else "images"
        lines: list[list[str | Styled]] = [
            [recipe_text(a), _figure(a)],
            [recipe_text(b), _figure(b)],
            ["difference", f"{number(judged.difference, sign=True)} points"],
            [f"95 % interval over {over}", interval(judged.low, judged.high)],
            ["p, permutation of images (Holm)", p_text(judged.p_images, judged.p_images_holm)],
            ["p, signs of seeds (Holm)", p_text(judged.p_seeds, judged.p_seeds_holm)],
            ["the first lies above", state(judged.verdict)],
        ]
        texts.append(f"{heading(f'{a.evaluation}, {judged.images} images')}\n{fitted_table(lines, ('', ''))}")
        texts += [remark(note) for note in judged.notes]
        if further := metric_lines(a, b, asked):
            texts.append(fitted_table(further, ("metric", "first", "second", "difference"), right=(1, 2, 3)))
            texts += [prose(f"{metric.title}: {metric.told}") for metric in asked]
        classes = difference_lines(a, b)
        if classes:
            texts.append(fitted_table(classes, ("class", "first", "second", "difference"), right=(1, 2, 3)))
        if others := what_differs(a, b):
            texts.append(
                f"{heading('what else differs')}\n{fitted_table(others, ('what', 'first', 'second'))}"
            )
    return "\n\n".join(texts)


def _figure(row: Row) -> str:
    return f"{mean_text(row)}, n = {row.n}"
