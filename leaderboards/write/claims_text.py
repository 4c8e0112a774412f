"""Claims as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leaderboards.judge.claims import Judged, p_text, verdict_counts
from leaderboards.judge.statements import Claim
from leaderboards.rows.text import DASH, escaped, number, pipe_table

_COLUMNS = (
    ("Claim", "left"),
    ("Recipe", "left"),
    ("should lie", "left"),
    ("Evaluation", "left"),
    ("n", "right"),
    ("Difference", "right"),
    ("95 % interval", "right"),
    ("Margin", "right"),
    ("p images (Holm)", "right"),
    ("p seeds (Holm)", "right"),
    ("Verdict", "left"),
    ("Notes", "left"),
)


def claims_markdown(judged: Sequence[Judged]) -> str:
    """Statements and verdicts, then what has not been run with the commands that run it."""
    run = [j for j in judged if j.verdict != "not run"]
    holes = [j for j in judged if j.verdict == "not run"]
    parts = [verdict_counts(judged) + ".\n"]
    notes: dict[str, int] = {}
    if run:
        statements = {j.claim.id: j.claim for j in run}
        parts.append(
            "\n".join(f"- **{c.id}**: {c.statement} ({_origin(c)})" for c in statements.values()) + "\n"
        )
        lines = [_line(j, notes) for j in run]
        parts.append(pipe_table(lines, [c[0] for c in _COLUMNS], [c[1] for c in _COLUMNS]) + "\n")
        parts += ["\n".join(f"{i}. {escaped(text)}" for text, i in notes.items()) + "\n"] if notes else []
    if holes:
        lines = [
            [
                j.claim.id,
                j.pair.better,
                f"{j.pair.relation} {j.pair.worse}",
                j.pair.evaluation,
                f"`{j.command}`" if j.command else DASH,
                escaped("; ".join(j.notes)),
            ]
            for j in holes
        ]
        heads = ["Claim", "Recipe", "should lie", "Evaluation", "Run it with", "Notes"]
        parts += ["## Not run\n", pipe_table(lines, heads, ["left"] * 6) + "\n"]
    return "\n".join(parts)


def _origin(claim: Claim) -> str:
    return ", ".join(part for part in (claim.paper, claim.place) if part) or "ours"


def _line(j: Judged, notes: dict[str, int]) -> list[str]:
    numbers = [notes.setdefault(note, len(notes) + 1) for note in j.notes]
    interval = DASH if math.isnan(j.low) else f"{number(j.low, sign=True)} to {number(j.high, sign=True)}"
    return [
        j.claim.id,
        j.pair.better,
        f"{j.pair.relation} {j.pair.worse}",
        j.pair.evaluation,
        str(j.n[0]) if j.n[0] == j.n[1] else f"{j.n[0]} and {j.n[1]}",
        number(j.difference, sign=True),
        interval,
        number(j.pair.bound, 1),
        p_text(j.p_images, j.p_images_holm),
        p_text(j.p_seeds, j.p_seeds_holm),
        j.verdict,
        ", ".join(map(str, numbers)),
    ]
