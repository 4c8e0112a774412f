"""``wsss evaluate`` and ``wsss predict``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from harness.commands.options import DATA_ROOT, DEVICE, RESULTS, SET, TRAINED, WORKERS, ended, together
from harness.commands.usage import Verb
from harness.errors import UserError
from harness.reading import Damaged
from harness.text import one_line

if TYPE_CHECKING:
    from harness.data.base import Dataset
    from harness.recipes import Resolved

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  wsss evaluate --predictions out/ --dataset voc2012 --split val --data-root ~/data
        any folder of <id>.png label maps, from any code base
  wsss evaluate agmm/mini-scribble --protocol agmm-voc
        adds a protocol to finished records, without training
  wsss evaluate cam/mini-image --split train --output cam --set config.background_score=0.2
        another threshold of the trained network's maps: an evaluation of its own
  wsss evaluate agmm/voc-point-r101 --checkpoint resnet101_67.80.pth --table agmm-sass --data-root ~/data
        scores a checkpoint that the authors' code saved""",
)
@click.argument("recipe", required=False)
@click.option("--predictions", type=click.Path(path_type=Path), help="Folder of <id>.png label maps.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A trained network's file.")
@click.option("--table", help="Whose checkpoint it is; this project's own by default.")
@click.option("--dataset", help="With --predictions: which data set.")
@click.option("--split", help="Split to score [default: the recipe's, or val].")
@click.option("--protocol", "protocol_name", help="Protocol [default: the recipe's].")
@click.option("--network", default="default", show_default=True, help="Which of the method's networks.")
@click.option("--output", default="segmentation", show_default=True, help="Or a pseudo label's name.")
@click.option(
    "--save", type=click.Path(path_type=Path), help="With --checkpoint: keep counts and predictions here."
)
@together(SET, DATA_ROOT, RESULTS, DEVICE, WORKERS)
def evaluate(
    recipe: str | None,
    predictions: Path | None,
    checkpoint: Path | None,
    table: str | None,
    dataset: str | None,
    split: str | None,
    protocol_name: str | None,
    network: str,
    output: str,
    save: Path | None,
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path | str,
    device: str,
    workers: int,
) -> int:
    """Score a folder of predictions, a checkpoint, or finished records by another protocol."""
    from harness.names import check_scored
    from harness.recipes import parse_overrides, resolve
    from harness.runs.trial import Options, choose_device, open_dataset
    from harness.specs import EvaluationSpec

    options = Options(results=results, data_roots=data_roots, device=device, workers=workers)
    if predictions is not None:
        if dataset is None:
            raise UserError("which data set?", where="--dataset", remedy="add --dataset NAME")
        _score_folder(open_dataset(dataset, data_roots, options.cache), predictions, split or "val")
        return 0
    if recipe is None:
        raise UserError("nothing to score", remedy="name a recipe, or a folder with --predictions")
    resolved = resolve(recipe, parse_overrides(assignments))
    check_scored(resolved, split=split, protocol=protocol_name, network=network, output=output, table=table)
    choose_device(device)
    usual = resolved.recipe.usual_evaluation
    spec = EvaluationSpec(
        split=split or usual.split, protocol=protocol_name or usual.protocol, network=network, output=output
    )
    if checkpoint is None:
        return _score_records(recipe, spec, options, parse_overrides(assignments))
    _score_checkpoint(resolved, checkpoint, table, spec, options, save)
    return 0


def _print(figures: dict[str, Any], title: str) -> None:
    rows = [
        (name, "absent" if value is None else f"{value:.2f}")
        for name, value in zip(figures["classes"], figures["iou"], strict=True)
    ]
    click.secho(title, bold=True)
    click.echo(
        tabulate(
            rows,
            headers=("class", "IoU %"),
            tablefmt="plain",
            disable_numparse=True,
            colalign=("left", "right"),
        )
    )
    miou = "undefined" if figures["miou"] is None else f"{figures['miou']:.2f}"
    click.echo(f"mIoU {miou} over {len(rows) - len(figures['absent'])} classes, {figures['images']} pictures")


def _score_folder(dataset: Dataset, folder: Path, split: str) -> None:
    """Score label maps of any origin."""
    from harness.data.predictions import folder_pairs
    from harness.evaluation import gather, protocol, summarise

    counts = gather(folder_pairs(dataset, folder, split), dataset.info.num_classes)
    _print(
        summarise(counts, dataset.info.classes, protocol("single")),
        f"{folder} on {dataset.info.name} {split}",
    )


def _score_records(name: str, spec: Any, options: Any, overrides: dict[str, Any]) -> int:
    """Add an evaluation to every finished record of a recipe."""
    from harness.networks import build_method
    from harness.recipes import training_overrides
    from harness.runs.mending import make_way
    from harness.runs.running import evaluate_into_record
    from harness.runs.trial import Trial, prepare

    store = options.store
    own = training_overrides(name, overrides)
    found = [r for r in store.records(name) if r.finished and r.data["overrides"] == own]
    if not found:
        others = "".join(f"; left out: {error.brief}" for error in store.left_out.values())
        raise UserError(
            f"no finished record of {name}{others}",
            where=store.place,
            remedy=f"train it first: wsss run {name}",
        )
    for record in found:
        prepared = prepare(Trial(name, record.seed, overrides), options, evaluations=(spec,))
        if prepared.digest != record.digest:
            click.echo(f"skipped {record.path}: its recipe, data or weights have changed since", err=True)
            continue
        try:
            if prepared.missing_evaluations():
                method = build_method(prepared.resolved, prepared.device, record.seed)
                with store.work(prepared.folder):
                    for line in make_way(prepared):
                        click.echo(line, err=True)
                    for _ in evaluate_into_record(prepared, method, spec):
                        pass
        except Damaged as error:  # the other seeds go on
            store.note(error)
            continue
        done = prepared.store.get(prepared.folder)
        assert done is not None
        title = prepared.evaluation_name(spec)
        _print(dict(done.evaluations[title].data), f"{name} seed {record.seed}: {title}")
    return ended(store)


def _score_checkpoint(
    resolved: Resolved, checkpoint: Path, table: str | None, spec: Any, options: Any, save: Path | None
) -> None:
    from tqdm import tqdm

    from harness import evaluation
    from harness.data.images import save_index
    from harness.data.verify import preflight
    from harness.files import sha256_of, write_json
    from harness.networks import load_network
    from harness.runs.trial import choose_device, open_dataset
    from harness.schema import dump

    dataset = open_dataset(resolved.recipe.dataset, options.data_roots, options.cache)
    fingerprint = preflight(dataset, [spec.split], cache=options.cache, workers=options.workers)[spec.split]
    device = choose_device(options.device)
    notes: list[str] = []
    method = load_network(resolved, device, checkpoint, table, say=notes.append)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    p = evaluation.protocol(spec.protocol)
    pairs = evaluation.predictions(
        method,
        dataset,
        spec.split,
        p,
        network=spec.network,
        output=spec.output,
        device=device,
        workers=options.workers,
    )

    def saved() -> Iterator[tuple[str, Any, Any]]:
        for name, prediction, mask in tqdm(
            pairs, total=len(dataset.ids(spec.split)), unit="picture", disable=None
        ):
            if save is not None:
                save_index(save / "predictions" / f"{name}.png", prediction, dataset.info.palette)
            yield name, prediction, mask

    counts = evaluation.gather(saved(), dataset.info.num_classes)
    figures = evaluation.summarise(counts, dataset.info.classes, p)
    if save is not None:
        counts.save(save / "per_image.npz")
        facts: dict[str, Any] = {"spec": dump(spec), "protocol": dump(p), "data_fingerprint": fingerprint}
        facts |= {"config": resolved.inference, "notes": notes}
        write_json(save / "evaluation.json", {**figures, **facts, "checkpoint_sha256": sha256_of(checkpoint)})
    _print(figures, f"{checkpoint.name}: {spec.name}")


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  wsss predict agmm/mini-scribble pictures/ --out predictions/
  wsss predict agmm/voc-point-r101 a.jpg b.jpg --checkpoint model.pth --table agmm-sass --out predictions/""",
)
@click.argument("recipe")
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("predictions"),
    show_default=True,
    help="Folder for <name>.png and <name>_overlay.png.",
)
@together(*TRAINED)
@click.option("--protocol", "protocol_name", help="Protocol [default: the recipe's].")
@together(SET, RESULTS, DEVICE)
def predict(
    recipe: str,
    pictures: tuple[Path, ...],
    out: Path,
    checkpoint: Path | None,
    table: str | None,
    seed: int,
    protocol_name: str | None,
    network: str,
    assignments: tuple[str, ...],
    results: Path | str,
    device: str,
) -> None:
    """Segment pictures: palette PNGs and overlays. PICTURES are files or folders."""
    from harness.names import check_scored
    from harness.prediction import segment
    from harness.recipes import parse_overrides, resolve
    from harness.runs.trial import choose_device

    overrides = parse_overrides(assignments)
    check_scored(resolve(recipe, overrides), protocol=protocol_name, network=network, table=table)
    choose_device(device)
    if checkpoint is None:
        checkpoint = recorded_checkpoint(recipe, seed, results, overrides)
    files = list_pictures(pictures)
    for file in segment(
        recipe,
        files,
        out,
        checkpoint=checkpoint,
        table=table,
        protocol=protocol_name,
        network=network,
        overrides=overrides,
        device=device,
        say=lambda note: click.echo(f"note: {note}", err=True),
    ):
        click.echo(one_line(str(file), 4096))


def recorded_checkpoint(recipe: str, seed: int, results: Path | str, overrides: dict[str, Any]) -> Path:
    """The checkpoint of a recipe's finished record. Raises UserError when there is none."""
    from harness.recipes import resolve, training_overrides
    from harness.store.records import Store

    resolve(recipe, overrides)  # an unknown recipe is a clearer error than a missing record
    own = training_overrides(recipe, overrides)
    store = Store(results)
    found = [
        r
        for r in store.records(recipe)
        if r.finished and r.seed == seed and training_overrides(recipe, r.data["overrides"]) == own
    ]
    if not found:
        others = "".join(f"; left out: {error.brief}" for error in store.left_out.values())
        raise UserError(
            f"no finished record of {recipe} seed {seed}{others}",
            where=store.place,
            remedy=f"train it (wsss run {recipe}) or pass --checkpoint",
        )
    newest = max(found, key=lambda r: r.data.get("ended") or "")
    store.pull(newest.path, lambda file: file == "checkpoint/last.pt")
    return newest.path / "checkpoint" / "last.pt"


def list_pictures(paths: Sequence[Path]) -> list[Path]:
    """Picture files, folders opened one level deep. Raises UserError for what is missing or empty."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError("no such picture or folder", where=path)
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES) if path.is_dir() else [path]
        )
        if not inside:
            raise UserError(
                "the folder holds no pictures", where=path, remedy=f"accepted: {', '.join(PICTURES)}"
            )
        files += inside
    return files
