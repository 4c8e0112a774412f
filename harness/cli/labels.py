"""``wsss data labels`` and ``wsss data show``."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from harness.basics import listing
from harness.basics.files import expanded
from harness.cli.completing import A_DATA_SET
from harness.cli.options import COUNT, DATA_ROOT, SEED_RANGE, OutputPath, Real, opened_dataset, together
from harness.cli.usage import Verb, refuse

_KINDS = ("scribble", "point", "block", "box", "image")
#: What recipes read as ``labels.format``, and what is read here alone.
_DIRECT = ("png", "xml", "polyline", "clicks", "labelme", "coco", "voc", "yolo", "csv")
_FORMATS = (*_DIRECT, "voc-boxes", "coco-boxes", "onehot")
LABELLED_SHARE = Real(0, 1, min_open=True)


@click.command(
    "labels",
    cls=Verb,
    epilog="""\b
Examples:
  wsss data labels voc2012 --kind scribble --split train_aug --data-root ~/data --out scribbles/
  wsss data labels voc2012 --kind scribble --keep 0.3 --images 0.5 --data-root ~/data --out short/
  wsss data labels cityscapes --kind point --clicks 50 --data-root ~/data --out 50clicks/
  wsss data labels voc2012 --kind point --format png --folder point/segcls --unlabelled 21 --out points/
  wsss data labels coco2014 --kind box --format coco-boxes --data-root ~/data --out boxes/
  wsss data labels voc2012 --kind image --format onehot --folder cls_labels_onehot.npy --out tags/
Official PNGs mean 'not annotated' by 255 (TEL, rloss, BLPSeg) or by K (AGMM): --unlabelled says which.""",
)
@click.argument("name", shell_complete=A_DATA_SET)
@click.option("--kind", type=click.Choice(_KINDS), required=True, help="Kind of weak label.")
@click.option("--split", default="train", show_default=True, help="Which pictures.")
@click.option("--out", type=OutputPath(), required=True, help="Folder to write into.")
@together(DATA_ROOT)
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Import such files [default: simulate].")
@click.option(
    "--folder", default="", help="Import: folder or file, absolute or relative to the data set's own."
)
@click.option("--background", default="", help="Import of clicks: a second file with background clicks.")
@click.option("--unlabelled", type=click.IntRange(0, 255), help="Import of PNGs: value of 'not annotated'.")
@click.option(
    "--encoding",
    type=click.Choice(["found", "classes", "files"]),
    default="found",
    show_default=True,
    help="Import of PNGs: whose numbers they hold, those of the classes or of the data set's own files.",
)
@click.option("--stroke", type=click.IntRange(1, 1000), default=3, show_default=True, help="Width in pixels.")
@click.option("--seed", type=SEED_RANGE, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--block-share", type=LABELLED_SHARE, default=0.1, show_default=True, help="Blocks: share of pixels."
)
@click.option(
    "--box-inside",
    type=click.Choice(("inner", "fill", "unlabelled")),
    default="inner",
    show_default=True,
    help="Boxes: what carries the class.",
)
@click.option(
    "--clicks", type=click.IntRange(1, 1_000_000), help="Simulated points: this many on each picture."
)
@click.option("--keep", type=LABELLED_SHARE, default=1.0, help="Share of every stroke's length that stays.")
@click.option("--strokes", type=LABELLED_SHARE, default=1.0, help="Probability of every stroke to stay.")
@click.option("--images", type=LABELLED_SHARE, default=1.0, help="Share of the images that keep their label.")
@click.option("--workers", type=COUNT, default=0, show_default=True, help="Processes.")
def labels_verb(
    name: str,
    kind: str,
    split: str,
    out: Path,
    data_roots: tuple[str, ...],
    form: str | None,
    folder: str,
    background: str,
    unlabelled: int | None,
    encoding: str,
    stroke: int,
    seed: int,
    block_share: float,
    box_inside: str,
    clicks: int | None,
    keep: float,
    strokes: float,
    images: float,
    workers: int,
) -> None:
    """Simulate weak labels from masks, or import official ones; with statistics and hashes.

    Writes <id>.png (class, 255 not annotated), labels.json and statistics.png, how much of each class is
    labelled and how far from boundaries. Recipes read the folder as official PNGs.
    """
    from harness.basics.schema import load
    from harness.data.base import LabelSpec
    from harness.data.prepare.label_making import FILE_UNLABELLED, Making, make_labels

    dataset = opened_dataset(name, data_roots)
    direct = form in _DIRECT
    spec = {
        "source": "official" if direct else "simulated",
        "format": form if direct else "",
        "folder": _absolute(folder, dataset.root) if direct else "",
        "background": _absolute(background, dataset.root),
        "stroke": stroke,
        "unlabelled": unlabelled,
        "encoding": encoding,
        "box_inside": box_inside,
        "seed": seed,
        "block_share": block_share,
    }
    source = "simulated" if form is None else "official" if direct else form
    making = Making(
        kind=kind,  # type: ignore[arg-type]
        source=source,  # type: ignore[arg-type]
        spec=load(LabelSpec, spec, "options"),
        place=_absolute(folder, dataset.root),
        clicks=clicks,
        keep=keep,
        strokes=strokes,
        images=images,
    )
    made = make_labels(dataset, split, making, out, workers=workers)
    summary = made.counts.summary(dataset.info.classes)
    facts = [
        ("images", f"{summary['images']:,}"),
        ("without a labelled pixel", f"{summary['images_without_label']:,}"),
    ]
    if kind == "image":
        facts.append(("image tags", str(out / "tags.npz")))
        advice = f"copy them to {getattr(dataset, 'tags_path', 'the data set')}"
    else:
        facts.append(("pixels labelled", f"{100 * summary['labelled_share']:.3f} %"))
        distance = summary["mean_distance_to_boundary"]
        if distance["labelled"] is not None and distance["all"] is not None:
            whole = f"{distance['labelled']:.1f} px, all pixels of objects {distance['all']:.1f} px"
            facts.append(("from the boundary", whole))
        advice = (
            "train on them with --set labels.source=official --set labels.format=png "
            f"--set labels.folder={out.absolute()} --set labels.unlabelled={FILE_UNLABELLED}"
        )
    facts += [("maker", made.maker[:12]), ("result", made.result[:12]), ("see", str(out / "labels.json"))]
    click.echo(listing.heading(f"{kind} labels of {dataset.info.title}, {split}"))
    click.echo(listing.fitted_table(facts, ("", "")))
    click.echo(advice)  # on one line, to be copied


def _absolute(folder: str, root: Path) -> str:
    """A place relative to the data set's folder, or where the user stands, as absolute."""
    if not folder:
        return ""
    given = expanded(folder)
    here = given if given.is_absolute() or (root / given).exists() or not given.exists() else given.absolute()
    return str(here)


@click.command(
    "show",
    cls=Verb,
    epilog="""\b
Examples:
  wsss data show voc2012 --data-root ~/data --out voc.png
  wsss data show voc2012 --split train --number 4 --labels points/ --labels scribbles/ --data-root ~/data""",
)
@click.argument("name", shell_complete=A_DATA_SET)
@click.option("--split", default="train", show_default=True, help="Which pictures.")
@click.option(
    "--number", type=click.IntRange(1, 100_000), default=6, show_default=True, help="How many, evenly spread."
)
@click.option("--id", "chosen", multiple=True, help="These pictures instead; repeatable.")
@click.option(
    "--labels",
    "folders",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="A folder of weak labels (255 not annotated); repeatable.",
)
@click.option("--seed", type=SEED_RANGE, default=0, show_default=True, help="Of the simulator.")
@click.option(
    "--out",
    type=OutputPath(file=True),
    default=Path("contact_sheet.png"),
    show_default=True,
    help="PNG file.",
)
@together(DATA_ROOT)
def show_labels_verb(
    name: str,
    split: str,
    number: int,
    chosen: tuple[str, ...],
    folders: tuple[Path, ...],
    seed: int,
    out: Path,
    data_roots: tuple[str, ...],
) -> None:
    """Draw a contact sheet: picture, mask, each weak label."""
    from harness.basics.errors import UserError, nearest
    from harness.data.labels.contact_sheet import contact_sheet, save_sheet

    dataset = opened_dataset(name, data_roots)
    ids = dataset.ids(split)
    unknown = [i for i in chosen if i not in set(ids)]
    if unknown:
        raise UserError(
            f"no picture {unknown[0]!r} in {split}", where="--id", remedy=nearest(unknown[0], ids)
        )
    some = chosen or [ids[k * len(ids) // min(number, len(ids))] for k in range(min(number, len(ids)))]
    seeded = click.get_current_context().get_parameter_source("seed") is ParameterSource.COMMANDLINE
    if seeded and not any(dataset.has_mask(i, split) for i in some):
        refuse(
            ["--seed"], f"without masks, and {split} of {name} has none", "to simulated labels", "data show"
        )
    sheet = contact_sheet(dataset, split, some, folders={f.name: f for f in folders}, seed=seed)
    save_sheet(sheet, out)
    click.echo(f"{len(some)} pictures of {split} in {out}")
