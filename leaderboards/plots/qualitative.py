"""The qualitative grid: picture, weak label, truth, and each method's prediction beside its errors.

All methods show the same pictures, and the pictures are not chosen by hand: they stand at fixed quantiles
of the IoU per picture, averaged over the methods. Predictions come from the files that a run kept
(``--save-predictions``), else from its checkpoint.
"""

from __future__ import annotations

import math
import textwrap
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

from harness.basics.errors import UserError
from harness.basics.files import cache_folder
from harness.basics.reading import Damaged
from harness.basics.schema import load
from harness.basics.scores import iou_from_counts
from harness.data.base import IGNORE, UNLABELLED, Dataset, DatasetInfo, LabelSpec
from harness.recipes import protocols
from harness.records.remote import present
from leaderboards.plots.drawing import STYLE, WIDTH, LegendEntries, caption, entries_of, entry_of, standing
from leaderboards.rows.row import Row

#: Quantiles of the mean IoU per picture that are shown [our choice].
QUANTILES = (0.2, 0.5, 0.8)
#: Methods in one grid, the best by mean mIoU.
MOST_PICTURES = 12
#: Largest height of a grid in inches: a page with its margins.
PAGE = 9.4
_LEGEND_COLUMNS = 7

#: Kinds of error and their colours (of Okabe and Ito's palette).
ERRORS = {
    "wrong class": "#D55E00",
    "object missed": "#0072B2",
    "background called object": "#E69F00",
}
_RIGHT = "#E4E4E4"


def choose_pictures(rows: Sequence[Row], quantiles: Sequence[float] = QUANTILES) -> list[str]:
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


def kept(row: Row, ids: Sequence[str]) -> bool:
    """Whether a row's first seed left its predictions of pictures as files."""
    return all(present(file) for file in _files(row, ids))


def _files(row: Row, ids: Sequence[str]) -> list[Path]:
    return [row.runs[0].path / "predictions" / f"{image_id}.png" for image_id in ids]


def predicted(row: Row, ids: Sequence[str], dataset: Dataset, device: str = "cpu") -> list[np.ndarray] | None:
    """``(H, W)`` uint8 predictions of a row's first seed; None where nothing can make them."""
    try:
        return _predicted(row, ids, dataset, device)
    except Damaged as error:
        row.records[0].note(error)
        return None


def _predicted(row: Row, ids: Sequence[str], dataset: Dataset, device: str) -> list[np.ndarray] | None:
    from harness.data.images import read_index

    run = row.runs[0]
    if kept(row, ids):
        return [read_index(file) for file in _files(row, ids)]
    checkpoint = row.records[0].path / "checkpoint" / f"{run.data['spec']['checkpoint']}.pt"
    if not present(checkpoint) or row.verdict == "external":
        return None
    from harness.engine.networks import load_network
    from harness.evaluation import evaluator
    from harness.recipes.resolving import resolve
    from harness.running.trials.trial import choose_device

    on, spec = choose_device(device), run.data["spec"]
    own = {f"config.{k}": v for k, v in row.runs[0].data.get("config", {}).items()}
    resolved = resolve(row.recipe, {**row.records[0].data["overrides"], **own})
    method = load_network(resolved, on, checkpoint, None, say=lambda note: None)  # the record says what it is
    p = protocols.protocol(spec["protocol"])
    options: dict[str, Any] = {"network": spec["network"], "device": on, "ids": list(ids)}
    return [found for _, found, _ in evaluator.predictions(method, dataset, spec["split"], p, **options)]


def weak_label_of(row: Row, image_id: str, mask: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """``(H, W)`` uint8 weak label as the row's recipe draws or reads it; None for tags and pseudo labels."""
    from harness.data.labels.weak_labels import simulate_as
    from harness.data.numbering import settled

    recipe = row.records[0].recipe
    if row.supervision == "image" or recipe.get("labels_from") or "labels" not in recipe:
        return None
    spec = load(LabelSpec, recipe["labels"], row.recipe)
    if row.supervision == "full":
        return mask
    supervision = recipe["supervision"]
    if spec.source == "official":
        try:
            known = settled(dataset, dataset.ids(recipe["train_split"]), spec)
            return dataset.read_official_label(image_id, supervision, known)
        except UserError:  # annotators did not label this split
            return None
    return simulate_as(spec, dataset.info, mask, supervision, image_id)


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
    entries: LegendEntries | None = None,
    *,
    ids: Sequence[str] | None = None,
    device: str = "cpu",
) -> Figure | None:
    """The grid of one data set, supervision and evaluation: two columns a picture, one line a method.

    Args:
        rows: rows with records, of one split; those without predictions or checkpoint are left out.
        dataset: the data set, opened.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.
        ids: pictures, by default those of :func:`choose_pictures`.
        device: where networks run.

    Returns:
        None when no row has predictions.
    """
    entries = entries_of(rows) if entries is None else entries
    ids = choose_pictures(rows) if ids is None else list(ids)
    found = [(row, maps) for row in rows if (maps := predicted(row, ids, dataset, device)) is not None]
    if not found:
        return None
    info, split = dataset.info, rows[0].split
    images = [dataset.read_image(image_id) for image_id in ids]
    masks = [dataset.read_mask(image_id, split) for image_id in ids]
    seen = {int(k) for mask in masks for k in np.unique(mask[mask != IGNORE])}
    with mpl.rc_context(STYLE):
        grid = _Grid(images, methods=len(found), classes=len(seen | _predicted_classes(found, info)))
        for place, (image_id, image, mask) in enumerate(zip(ids, images, masks, strict=True)):
            grid.tile(0, 2 * place, image, "picture")
            label = weak_label_of(found[0][0], image_id, mask, dataset)
            if label is None:
                tags = np.flatnonzero(dataset.tags([image_id])[0])
                grid.words(0, 2 * place + 1, [info.classes[i] for i in tags], "weak label: tags")
            else:
                grid.tile(0, 2 * place + 1, on_picture(label, image, info.palette), "weak label")
            grid.tile(1, 2 * place, coloured(mask, info.palette), "truth")
            grid.words(1, 2 * place + 1, [image_id], "")
            for line, (_, maps) in enumerate(found, start=2):
                heads = ("prediction", "errors") if line == 2 else ("", "")
                grid.tile(line, 2 * place, coloured(maps[place], info.palette), heads[0])
                grid.tile(line, 2 * place + 1, errors(maps[place], mask, info.background), heads[1])
        for line, (row, _) in enumerate(found, start=2):
            words = textwrap.wrap(entry_of(entries, row).label, 17)
            grid.name(line, "\n".join([*words, f"{row.runs[0].miou:.1f} mIoU"]))
        seen |= _predicted_classes(found, info)
        handles = [Patch(color=_hex(info.palette[k]), label=info.classes[k]) for k in sorted(seen)]
        shown = ", ".join(f"{q:.0%}" for q in QUANTILES)
        seeds = {row.seeds[0] for row, _ in found}
        seed = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed of each"
        grid.finish(
            handles, f"{caption(rows[0])}\npictures at {shown} of IoU per picture; {seed}; white: void"
        )
    return grid.figure


def _predicted_classes(found: Sequence[tuple[Row, Sequence[np.ndarray]]], info: DatasetInfo) -> set[int]:
    return {int(k) for _, maps in found for m in maps for k in np.unique(m) if k < info.num_classes}


class _Grid:
    """Tiles of one size in inches, so that every line of every grid is as large as the page allows.

    Args:
        images: the pictures; the tallest shape makes the height of a line.
        methods: lines below picture, weak label and truth.
        classes: entries of the legend, errors aside.
    """

    NAMES, GAP, HEAD, TITLE = 1.05, 0.05, 0.15, 0.4  # inches: names, between tiles, heads, title

    def __init__(self, images: Sequence[np.ndarray], methods: int, classes: int) -> None:
        self.columns, self.lines = 2 * len(images), 2 + methods
        self.legend = 0.17 * (1 + math.ceil(classes / _LEGEND_COLUMNS))  # a line for the errors
        shape = max(image.shape[0] / image.shape[1] for image in images)
        self.width = (WIDTH - self.NAMES - self.GAP * (self.columns + len(images))) / self.columns
        fixed = self.TITLE + 3 * self.HEAD + self.legend + 0.1
        room = (PAGE - fixed) / self.lines - self.GAP
        self.height = min(self.width * shape, room)
        self.total = fixed + self.lines * (self.height + self.GAP)
        self.figure = Figure(figsize=(WIDTH, self.total))

    def _axes(self, line: int, column: int, head: str) -> Axes:
        left = self.NAMES + column * (self.width + self.GAP) + (column // 2) * self.GAP
        axes = self.figure.add_axes(
            (left / WIDTH, self._bottom(line) / self.total, self.width / WIDTH, self.height / self.total)
        )
        axes.set_axis_off()
        axes.set(xticks=(), yticks=())  # else they are made as soon as anything looks for text
        axes.set_anchor("N")
        if head:
            axes.set_title(head, fontsize=7, loc="center", pad=2)
        return axes

    def _bottom(self, line: int) -> float:
        heads = self.HEAD * min(line + 1, 3)  # above the picture, the truth and the first method
        return self.total - self.TITLE - heads - (line + 1) * self.height - line * self.GAP

    def tile(self, line: int, column: int, image: np.ndarray, head: str) -> None:
        """Show a picture or map."""
        self._axes(line, column, head).imshow(image, interpolation="nearest")

    def words(self, line: int, column: int, words: Sequence[str], head: str) -> None:
        """Words in place of a picture."""
        axes = self._axes(line, column, head)
        axes.text(0.5, 0.5, "\n".join(words), ha="center", va="center", fontsize=7, transform=axes.transAxes)

    def name(self, line: int, text: str) -> None:
        """What stands before a line."""
        middle = (self._bottom(line) + self.height / 2) / self.total
        self.figure.text((self.NAMES - 0.06) / WIDTH, middle, text, ha="right", va="center", fontsize=7)

    def finish(self, handles: Sequence[Patch], title: str) -> None:
        """Legend below, title above."""
        kinds = [Patch(color=colour, label=name) for name, colour in {"right": _RIGHT, **ERRORS}.items()]
        left, high = self.NAMES / WIDTH, self.total
        for entries, columns, top in ((handles, _LEGEND_COLUMNS, self.legend + 0.06), (kinds, 4, 0.23)):
            self.figure.legend(
                handles=list(entries), loc="upper left", bbox_to_anchor=(left, top / high), ncols=columns,
                fontsize=7, handlelength=1.0, borderaxespad=0, borderpad=0,
            )  # fmt: skip
        self.figure.suptitle(title, x=0.01, y=1 - 0.06 / self.total, ha="left", va="top", fontsize=7.5)


def draw_grids(
    rows: Sequence[Row],
    data_roots: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, Figure]]:
    """File stem and figure of the grid of every data set, supervision and evaluation; one choice of pictures.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`; stale ones and holes are left out.
        data_roots: where data sets are, as for ``wsss run``.
        device: where networks run.
        say: called with a sentence for what is left out.
    """
    from harness.data.sets.roots import open_dataset

    shown = [row for row in standing(rows) if row.output == "segmentation"]

    def key(row: Row) -> tuple[str, str, str]:
        return row.dataset, row.supervision, row.evaluation

    for (name, supervision, evaluation), group in groupby(sorted(shown, key=key), key=key):
        members = sorted(group, key=lambda row: -row.mean)[:MOST_PICTURES]
        try:
            dataset = open_dataset(name, data_roots, cache_folder())
            entries = entries_of([row for row in shown if row.dataset == name])
            same = [row for row in shown if (row.dataset, row.split) == (name, members[0].split)]
            figure = qualitative_figure(members, dataset, entries, ids=choose_pictures(same), device=device)
        except UserError as error:
            say(f"left out: pictures of {name}, {supervision}: {error.problem}")
            continue
        if figure is None:
            say(f"left out: pictures of {name}, {supervision}: neither predictions nor checkpoints")
            continue
        yield "-".join(["qualitative", name, supervision, evaluation]), figure


def write_grids(
    rows: Sequence[Row],
    out: Path,
    formats: Sequence[str],
    data_roots: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    label: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Draw and write the grids; arguments as in :func:`draw_grids`, ``label`` is printed below each."""
    from leaderboards.plots.drawing import once, save_figure

    say = once(say)

    drawn = draw_grids(rows, data_roots, device=device, say=say)
    return [file for stem, figure in drawn for file in save_figure(figure, out / stem, formats, label, say)]
