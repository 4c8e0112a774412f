"""The qualitative grid: picture, weak label, truth, and each method's prediction above its errors.

All methods show the same pictures, and the pictures are not chosen by hand: they stand at fixed quantiles
of the IoU per picture, averaged over the methods. Predictions come from the files that a run kept
(``--save-predictions``), else from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import distance_transform_edt

from harness.data.base import IGNORE, UNLABELLED, Dataset, LabelSpec
from harness.errors import UserError
from harness.evaluation import iou_from_counts
from harness.files import cache_folder
from harness.remote import present
from harness.schema import load
from leaderboards.drawing import STYLE, WIDTH, Entries, caption, entries_of, entry_of, standing
from leaderboards.tables import Row

#: Quantiles of the mean IoU per picture that are shown [our choice].
QUANTILES = (0.2, 0.5, 0.8)
#: Methods in one grid.
MOST = 5

#: Kinds of error and their colours (of Okabe and Ito's palette).
ERRORS = {
    "wrong class": "#D55E00",
    "object missed": "#0072B2",
    "background called object": "#E69F00",
}
_RIGHT = "#E4E4E4"


def choose(rows: Sequence[Row], quantiles: Sequence[float] = QUANTILES) -> list[str]:
    """Ids of the pictures at quantiles of IoU per picture, mean over rows (each with its first seed).

    Args:
        rows: rows with records, of one split.
        quantiles: in ``[0, 1]``, ascending.
    """
    runs = [row.runs[0].per_image for row in rows]
    shared = sorted(set(runs[0].ids).intersection(*(run.ids for run in runs[1:])))
    scores = []
    for run in runs:
        miou = iou_from_counts(run.intersection, run.predicted, run.labelled)[1]
        found = dict(zip(run.ids, miou.tolist(), strict=True))
        scores.append([found[i] for i in shared])
    mean = np.nan_to_num(np.mean(scores, axis=0), nan=0.0)
    order = np.argsort(mean, kind="stable")
    chosen = [int(order[round(q * (len(order) - 1))]) for q in quantiles]
    return [shared[i] for i in dict.fromkeys(chosen)]


def predicted(row: Row, ids: Sequence[str], dataset: Dataset, device: str = "cpu") -> list[np.ndarray] | None:
    """``(H, W)`` uint8 predictions of a row's first seed; None where nothing can make them."""
    from harness.data.images import read_index

    run = row.runs[0]
    files = [run.path / "predictions" / f"{image_id}.png" for image_id in ids]
    if all(present(file) for file in files):
        return [read_index(file) for file in files]
    checkpoint = row.records[0].path / "checkpoint" / f"{run.data['spec']['checkpoint']}.pt"
    if not present(checkpoint) or row.verdict == "external":
        return None
    from harness import evaluation
    from harness.networks import load_network
    from harness.recipes import resolve
    from harness.trial import choose_device

    on, spec = choose_device(device), run.data["spec"]
    method = load_network(resolve(row.recipe, row.records[0].data["overrides"]), on, checkpoint, None)
    p = evaluation.protocol(spec["protocol"])
    options: dict[str, Any] = {"network": spec["network"], "device": on, "ids": list(ids)}
    return [found for _, found, _ in evaluation.predictions(method, dataset, spec["split"], p, **options)]


def weak_label_of(row: Row, image_id: str, mask: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """``(H, W)`` uint8 weak label as the row's recipe draws or reads it; None for tags and pseudo labels."""
    from harness.data.weak_labels import simulate

    recipe = row.records[0].recipe
    if row.supervision == "image" or recipe.get("labels_from") or "labels" not in recipe:
        return None
    spec = load(LabelSpec, recipe["labels"], row.recipe)
    if row.supervision == "full":
        return mask
    if spec.source == "official":
        try:
            return dataset.read_official_label(image_id, row.records[0].recipe["supervision"], spec)
        except UserError:  # annotators did not label this split
            return None
    return simulate(
        mask,
        row.records[0].recipe["supervision"],
        image_id=image_id,
        seed=spec.seed,
        num_classes=dataset.info.num_classes,
        background=dataset.info.background,
        stroke=spec.stroke,
        block_share=spec.block_share,
        box_inside=spec.box_inside,
    )


# --- colours ---------------------------------------------------------------------------------------------


def coloured(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """``(H, W, 3)`` uint8: classes in the data set's palette, everything else white."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8)
    return table[labels]


def on_picture(label: np.ndarray, image: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """A sparse label over its pale picture; strokes are widened so that they can be seen in print."""
    away, nearest = distance_transform_edt(label == UNLABELLED, return_indices=True)
    wide = np.where(away <= max(label.shape) / 160, label[tuple(nearest)], UNLABELLED)
    pale = (0.35 * image + 0.65 * 255).astype(np.uint8)
    return np.where((wide == UNLABELLED)[..., None], pale, coloured(wide, palette))


def errors(prediction: np.ndarray, mask: np.ndarray, background: int | None) -> np.ndarray:
    """``(H, W, 3)`` uint8: kinds of error in the colours of :data:`ERRORS`, right pixels grey, void white."""
    colours = {name: _rgb(text) for name, text in ERRORS.items()}
    out = np.empty((*mask.shape, 3), dtype=np.uint8)
    out[:] = _rgb(_RIGHT)
    wrong = prediction != mask
    out[wrong] = colours["wrong class"]
    if background is not None:
        out[wrong & (prediction == background)] = colours["object missed"]
        out[wrong & (mask == background)] = colours["background called object"]
    out[mask == IGNORE] = 255
    return out


def _hex(colour: Sequence[int]) -> str:
    return "#{:02X}{:02X}{:02X}".format(*colour)


def _rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


# --- the figure ------------------------------------------------------------------------------------------


def qualitative_figure(
    rows: Sequence[Row],
    dataset: Dataset,
    entries: Entries | None = None,
    *,
    ids: Sequence[str] | None = None,
    device: str = "cpu",
) -> Figure | None:
    """The grid of one data set, supervision and evaluation.

    Args:
        rows: rows with records, of one split; those without predictions or checkpoint are left out.
        dataset: the data set, opened.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.
        ids: pictures, by default those of :func:`choose`.
        device: where networks run.

    Returns:
        None when no row has predictions.
    """
    entries = entries_of(rows) if entries is None else entries
    ids = choose(rows) if ids is None else list(ids)
    found = [(row, maps) for row in rows if (maps := predicted(row, ids, dataset, device)) is not None]
    if not found:
        return None
    info, split = dataset.info, rows[0].split
    heads = ["picture", "weak label", "truth", *(entry_of(entries, row).label for row, _ in found)]
    seen: set[int] = set()
    side = min(1.2, WIDTH / len(heads))
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(max(4.6, side * len(heads)), 0.9 + 2 * 0.92 * side * len(ids)), layout="constrained"
        )
        panels = figure.subplots(2 * len(ids), len(heads), squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for line, image_id in enumerate(ids):
            image, mask = dataset.read_image(image_id), dataset.read_mask(image_id, split)
            upper, lower = panels[2 * line], panels[2 * line + 1]
            label = weak_label_of(found[0][0], image_id, mask, dataset)
            _show(upper[0], image)
            if label is None:
                tags = np.flatnonzero(dataset.tags([image_id])[0])
                words = "tags:\n" + "\n".join(info.classes[i] for i in tags)
                upper[1].text(
                    0.5, 0.5, words, ha="center", va="center", fontsize=7, transform=upper[1].transAxes
                )
            else:
                _show(upper[1], on_picture(label, image, info.palette))
            _show(upper[2], coloured(mask, info.palette))
            lower[0].text(0.5, 1.0, image_id, ha="center", va="top", fontsize=6, transform=lower[0].transAxes)
            seen |= set(np.unique(mask[mask != IGNORE]).tolist())
            for column, (_, maps) in enumerate(found, start=3):
                _show(upper[column], coloured(maps[line], info.palette))
                _show(lower[column], errors(maps[line], mask, info.background))
                seen |= set(np.unique(maps[line]).tolist()) & set(range(info.num_classes))
        for axes, head in zip(panels[0], heads, strict=True):
            axes.set_title(head, fontsize=7, loc="center")
        handles = [Patch(color=_hex(info.palette[k]), label=info.classes[k]) for k in sorted(seen)]
        handles += [Patch(color=colour, label=name) for name, colour in ERRORS.items()]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(5, len(handles)),
            fontsize=7,
            handlelength=1.0,
        )
        shown = ", ".join(f"{q:.0%}" for q in QUANTILES)
        title = (
            f"{caption(rows[0])}\npictures at {shown} of IoU per picture; below each prediction its errors"
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=7.5)
    return figure


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest")


def draw(
    rows: Sequence[Row],
    data_roots: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, Figure]]:
    """File stem and figure of the grid of every data set, supervision and evaluation; one choice of pictures.

    Args:
        rows: from :func:`leaderboards.tables.leaderboard`; stale ones and holes are left out.
        data_roots: where data sets are, as for ``wsss run``.
        device: where networks run.
        say: called with a sentence for what is left out.
    """
    from harness.trial import open_dataset

    shown = [row for row in standing(rows) if row.output == "segmentation"]

    def key(row: Row) -> tuple[str, str, str]:
        return row.dataset, row.supervision, row.evaluation

    for (name, supervision, evaluation), group in groupby(sorted(shown, key=key), key=key):
        members = sorted(group, key=lambda row: -row.mean)[:MOST]
        try:
            dataset = open_dataset(name, data_roots, cache_folder())
            entries = entries_of([row for row in shown if row.dataset == name])
            same = [row for row in shown if (row.dataset, row.split) == (name, members[0].split)]
            figure = qualitative_figure(members, dataset, entries, ids=choose(same), device=device)
        except UserError as error:
            say(f"left out: pictures of {name}, {supervision}: {error.problem}")
            continue
        if figure is None:
            say(f"left out: pictures of {name}, {supervision}: neither predictions nor checkpoints")
            continue
        yield "-".join(["qualitative", name, supervision, evaluation]), figure


def write(
    rows: Sequence[Row],
    out: Path,
    formats: Sequence[str],
    data_roots: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Draw and write the grids; arguments as in :func:`draw`."""
    from leaderboards.drawing import save

    drawn = draw(rows, data_roots, device=device, say=say)
    return [file for stem, figure in drawn for file in save(figure, out / stem, formats)]
