"""``wsss curve``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.basics import listing
from harness.basics.files import whole_file
from harness.cli.completing import A_RECIPE
from harness.cli.options import (
    DATA_ROOT,
    DEVICE,
    JSON,
    ON_REQUEST,
    RESULTS,
    SET,
    WORKERS_OPTION,
    OutputPath,
    Real,
    aside,
    ended,
    on_request,
    together,
)
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from harness.running.inference.curves import ThresholdCurve

ORACLE = "oracle (has seen masks)"


@click.command(
    "curve",
    cls=Verb,
    epilog="""\b
Examples:
  wsss curve cam/mini-image                   the pictures that it trained on
  wsss curve toco/mini-image --split val --step 0.005
  wsss curve cam/voc-image-r50 --data-root ~/data --ray    a GPU for each record

The best threshold is an oracle's: it was chosen by the masks that it is scored on. Nothing is recorded.
Exit codes: 0 done, 1 done, and damaged files were left out, 2 refused.""",
)
@click.argument("recipe", shell_complete=A_RECIPE)
@click.option("--split", help="Which pictures [default: those of training].")
@click.option(
    "--step", type=Real(0.0005, 0.5), default=0.01, show_default=True, help="Between two thresholds."
)
@click.option(
    "--out",
    type=OutputPath(),
    default=Path("reports"),
    show_default=True,
    help="Folder for curve-RECIPE-SPLIT.csv, .md, .png and .svg; rows with values add a digest.",
)
@together(SET, DATA_ROOT, RESULTS, DEVICE, WORKERS_OPTION, JSON, *ON_REQUEST)
def curve_verb(
    recipe: str,
    split: str | None,
    step: float,
    out: Path,
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path | str,
    device: str,
    workers: int,
    as_json: bool,
    ray: bool,
    max_concurrent: int | None,
    gpus_each: float | None,
    address: str | None,
) -> int:
    """Pseudo labels over the threshold of activation maps: mIoU, precision, recall.

    Every finished record of the recipe is measured in one pass over the split, all thresholds at once.
    """
    from harness.recipes.resolving import parse_overrides
    from harness.recipes.row_names import row_name, row_stem
    from harness.running.inference.curves import threshold_curve
    from harness.running.trials.trial import Options
    from leaderboards.plots.drawing import save_figure
    from leaderboards.plots.thresholds import threshold_figure, threshold_lines
    from leaderboards.rows.text import csv_table, number, pipe_table

    options = Options(results=results, data_roots=data_roots, device=device, workers=workers)
    store = options.store
    curve = threshold_curve(
        recipe,
        split=split,
        step=step,
        overrides=parse_overrides(assignments),
        options=options,
        resources=on_request(ray, max_concurrent, gpus_each, address, options),
        store=store,
        say=aside,
    )
    lines = threshold_lines(curve)
    stem = out / f"curve-{row_stem(curve.recipe, curve.overrides)}-{curve.split}"
    heads = ("threshold", "mIoU (%)", "precision (%)", "recall (%)", "")
    chosen = _shown(curve)
    body = [
        [
            f"{curve.thresholds[i]:.3g}",
            *(_figure(lines[i][key], lines[i][f"{key}_std"]) for key in ("miou", "precision", "recall")),
            str(lines[i]["mark"])
            .replace("own", "the recipe's own")
            .replace("oracle", "oracle (has seen masks)"),
        ]
        for i in chosen
    ]
    row = row_name(curve.recipe, curve.overrides)
    title = f"{row}, {curve.split}: {curve.pictures} pictures, seeds {', '.join(map(str, curve.seeds))}"
    with whole_file(Path(f"{stem}.csv")) as file:
        file.write(csv_table(lines, list(lines[0])))
    with whole_file(Path(f"{stem}.md")) as file:
        notes = "".join(f"\n- {note}" for note in curve.notes)
        file.write(f"# {title}\n\n{pipe_table(body, heads, ['right'] * 4 + ['left'])}\n{notes}\n")
    save_figure(threshold_figure(curve), stem, ("png", "svg"), say=aside)
    if as_json:
        plain = [{k: None if v != v else v for k, v in line.items()} for line in lines]
        click.echo(json.dumps(plain, indent=1))
        return ended(store)
    click.echo(listing.heading(title))
    click.echo(listing.fitted_table(body, heads, right=(0, 1, 2, 3)))
    best = curve.miou.mean(0)
    if curve.own is not None:
        gap = number(float(best[curve.oracle] - best[curve.own]), sign=True)
        listing.say_paragraph(
            f"the oracle lies {gap} points above the recipe's own threshold; it has seen the masks of "
            f"{curve.split}, so that this is what masks would buy, and no result of the method"
        )
    click.echo(f"\nwrote {stem}.csv, .md, .png and .svg")
    return ended(store)


def _figure(mean: object, std: object) -> str:
    assert isinstance(mean, float)
    assert isinstance(std, float)
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def _shown(curve: ThresholdCurve) -> list[int]:
    """Places of a table's lines: about twenty, and the two that are marked."""
    marked = {curve.oracle} | ({curve.own} if curve.own is not None else set())
    every = max(1, len(curve.thresholds) // 20)
    return sorted({*range(0, len(curve.thresholds), every), *marked})
