"""Equal budgets on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from harness.basics.listing import fitted_table, heading, prose
from harness.running.search.tuning import Tuning
from leaderboards.rows.budgets import BudgetRow
from leaderboards.rows.row import Row
from leaderboards.rows.text import DASH, escaped, mean_text, number, pipe_table

_HEADS = (
    "recipe", "as published", "place", "equally tuned", "place", "difference", "95 % interval", "masks seen",
    "search (h)", "training (h)", "chosen",
)  # fmt: skip
_RIGHT = (1, 2, 3, 4, 5, 6, 7, 8, 9)
#: Numbers of trials that the second table shows, as shares of the budget.
_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 50, 64, 100, 128, 200, 256, 500, 1000)


def _lines(rows: Sequence[BudgetRow]) -> list[list[str]]:
    return [
        [
            row.tuned.recipe,
            _figure(row.published),
            str(row.places[0] or DASH),
            "as published" if row.tuned.own and row.best is not None else _figure(row.best),
            str(row.places[1] or DASH),
            DASH if row.difference is None else number(row.difference.estimate, sign=True),
            DASH
            if row.difference is None
            else f"{number(row.difference.low, sign=True)} to {number(row.difference.high, sign=True)}",
            str(row.masks),
            f"{row.search_hours:.2f}",
            f"{row.training_hours:.2f}",
            row.changed or "its own values",
        ]
        for row in rows
    ]


def _figure(row: Row | None) -> str:
    return DASH if row is None else mean_text(row)


def _curve(rows: Sequence[BudgetRow], spread: bool) -> tuple[list[str], list[list[str]]]:
    """Expected best scores: of each recipe with its own values first, and of the drawn trials alone."""
    longest = max((len(row.mean) for row in rows), default=0)
    numbers = [n for n in _SHOWN if n < longest] + ([longest] if longest else [])
    lines = []
    for row in rows:
        curves = [(row.tuned.recipe, row.mean, row.std)]
        if len(row.drawn) < len(row.mean):
            curves.append(("  drawn alone", row.drawn, row.drawn_std))
        for name, means, deviations in curves:
            known = [n <= len(means) for n in numbers]
            texts = [
                (f"{means[n - 1]:.2f}" + (f" ± {deviations[n - 1]:.2f}" if spread else "")) if here else DASH
                for n, here in zip(numbers, known, strict=True)
            ]
            lines.append([name, *texts])
    return ["recipe", *(f"{n}" for n in numbers)], lines


def explained(rows: Sequence[BudgetRow], tuning: Tuning) -> list[str]:
    """What a reader must know of both tables."""
    stamps = list(dict.fromkeys(row.tuned.found.stamp for row in rows))
    said = [
        f"Every recipe had {tuning.trials} trials of the sampler `{tuning.sampler}` under the scheduler "
        f"`{tuning.scheduler}`, {'; '.join(stamps)}; the first trial has the recipe's own values. Both "
        f"configurations were then trained on the whole training split with {len(tuning.seeds)} seeds.",
        "The interval of the difference is over images and seeds. `masks seen` counts the pictures whose "
        "masks chose the values: as published, a recipe needs none of them here.",
        "Expected best: mean and deviation of the best score of n trials on the pictures that trials were "
        "compared on, over all orders of the trials behind the first (drawn without replacement); `drawn "
        "alone` leaves the first one out. A trial that was stopped early counts with what it had reached.",
    ]
    if tuning.sampler != "random":
        said.append(
            f"Trials of `{tuning.sampler}` depend on those before them: the expectation is over orders of "
            "these trials, and not over searches."
        )
    return said


def budget_listing(rows: Sequence[BudgetRow], tuning: Tuning) -> str:
    """Both tables as a terminal shows them."""
    heads, lines = _curve(rows, spread=False)
    return "\n".join(
        [
            heading("as published and equally tuned: mIoU (%)"),
            fitted_table(_lines(rows), _HEADS, right=_RIGHT),
            "",
            heading("expected best score by number of trials: mIoU (%)"),
            fitted_table(lines, heads, right=range(1, len(heads))),
            "",
            *(prose(text) for text in explained(rows, tuning)),
        ]
    )


def budget_markdown(rows: Sequence[BudgetRow], tuning: Tuning, title: str) -> str:
    """Both tables as Markdown."""
    heads, lines = _curve(rows, spread=True)
    right = ["right" if i in _RIGHT else "left" for i in range(len(_HEADS))]
    body = [[escaped(text) for text in line] for line in _lines(rows)]
    parts = [f"# Equal budgets: {escaped(title)}", pipe_table(body, _HEADS, right)]
    parts += ["## Expected best score by number of trials"]
    parts.append(pipe_table(lines, heads, ["left", *["right"] * (len(heads) - 1)]))
    return "\n\n".join([*parts, *explained(rows, tuning)]) + "\n"
