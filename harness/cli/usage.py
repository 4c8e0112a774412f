"""Which verb uses which option, and when: an option that would be ignored is refused.

:data:`TABLE` lists every argument and option of every verb once: those that count always, and those that
count in one mode alone. :class:`Verb` checks it for every command line before the verb does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from harness.basics.errors import UserError
from harness.basics.files import check_writable
from harness.cli.options import OutputPath

#: Values of all parameters of a verb, by name.
ParameterValues = Mapping[str, Any]


@dataclass(frozen=True)
class Only:
    """Options that one mode of a verb uses and the others would ignore.

    Attributes:
        options: parameter names, separated by spaces.
        when: whether a command line is in that mode.
        otherwise: names the modes that ignore them, behind "is not used".
        applies: names the mode that uses them, behind "it applies".
    """

    options: str
    when: Callable[[ParameterValues], bool]
    otherwise: str
    applies: str

    @property
    def names(self) -> list[str]:
        """Parameter names."""
        return self.options.split()


@dataclass(frozen=True)
class Usage:
    """All parameters of a verb: those that count always (``always``, by name), and those that do not."""

    always: str = ""
    only: tuple[Only, ...] = ()

    def names(self) -> set[str]:
        """All parameters named."""
        return {*self.always.split(), *(name for rule in self.only for name in rule.names)}


class Verb(click.Command):
    """A command that refuses, before it begins, options which it would ignore and places for its results that
    cannot be written (:class:`harness.cli.options.OutputPath`)."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the command line against :data:`TABLE`, and where it writes to; then run."""
        usage = TABLE.get(verb_name(ctx), Usage())
        refuse_ignored(ctx, usage)
        unused = {name for rule in usage.only if not rule.when(ctx.params) for name in rule.names}
        for parameter in self.params:
            place = ctx.params.get(parameter.name or "")
            if not isinstance(parameter.type, OutputPath) or (
                parameter.type.allow_dash and place == Path("-")
            ):
                continue
            if place is not None and parameter.name not in unused:
                check_writable(place, file=parameter.type.file)
        return super().invoke(ctx)


def verb_name(context: click.Context) -> str:
    """``evaluate`` or ``data labels``: the words behind the program's own name."""
    words: list[str] = []
    while context.parent is not None:
        words.insert(0, context.info_name or "")
        context = context.parent
    return " ".join(words)


def given_options(context: click.Context) -> dict[str, str]:
    """What the user wrote explicitly: parameter name to its spelling on the command line."""
    return {
        p.name: max(p.opts, key=len) if isinstance(p, click.Option) else p.human_readable_name
        for p in context.command.params
        if p.name and context.get_parameter_source(p.name) is ParameterSource.COMMANDLINE
    }


def refuse_ignored(context: click.Context, usage: Usage) -> None:
    """Raises UserError for a parameter that was given and that this mode of the verb does not use."""
    written = given_options(context)
    for rule in usage.only:
        ignored = [written[name] for name in rule.names if name in written]
        if ignored and not rule.when(context.params):
            refuse(ignored, rule.otherwise, rule.applies, verb_name(context))


def refuse(options: list[str], otherwise: str, applies: str, verb: str) -> None:
    """Raises the UserError that says where options count; words as in :class:`Only`."""
    one = len(options) == 1
    raise UserError(
        f"{', '.join(options)} {'is' if one else 'are'} not used {otherwise}",
        where=f"wsss {verb}",
        remedy=f"leave {'it' if one else 'them'} out; {'it applies' if one else 'they apply'} {applies}",
    )


# --- modes -------------------------------------------------------------------------------------------


def _has(name: str) -> Callable[[ParameterValues], bool]:
    return lambda values: values[name] not in (None, False, ())


def _lacks(name: str) -> Callable[[ParameterValues], bool]:
    return lambda values: values[name] in (None, False, ())


def _is(name: str, *wanted: Any) -> Callable[[ParameterValues], bool]:
    return lambda values: values[name] in wanted


def _not(name: str, *unwanted: Any) -> Callable[[ParameterValues], bool]:
    return lambda values: values[name] not in unwanted


def _simulates(values: ParameterValues) -> bool:
    return values["form"] is None


def _random(values: ParameterValues) -> bool:
    """Whether making labels draws random numbers."""
    thinned = any(values[name] < 1 for name in ("keep", "strokes", "images"))
    return values["kind"] != "image" and (_simulates(values) or thinned)


def _strokes_drawn(values: ParameterValues) -> bool:
    """Whether labels are drawn with a width."""
    if _simulates(values):
        return values["kind"] in ("scribble", "point") and values["clicks"] is None
    drawn = ("scribble", "point")
    return values["form"] in ("xml", "polyline", "clicks", "csv") or (
        values["form"] == "labelme" and values["kind"] in drawn
    )


def _prepares(values: ParameterValues) -> bool:
    """Whether a data set is built from official files; a name that nobody knows is refused elsewhere."""
    from harness.basics.registry import DATASETS
    from harness.data.base import Dataset

    known = values["name"] in DATASETS
    return not known or DATASETS.get(values["name"]).prepare is not Dataset.prepare


def _names_recipe(values: ParameterValues) -> bool:
    """Whether a network is named by its recipe, and not by a file of its own."""
    from harness.records.origin import is_network_file

    return not is_network_file(values["source"] if "source" in values else values["recipe"])


def _segments(values: ParameterValues) -> bool:
    """Whether an export may be of a segmentation."""
    if values["form"] == "npy":
        return False
    return values["output"] in (None, "segmentation")


_WITHOUT_RAY = Only(
    "max_concurrent cpus_per_trial gpus_per_trial processes_per_trial address",
    _lacks("local"),
    "with --local, where trials run one after another in this process",
    "without it: drop --local",
)
_PLACES = "data_roots results device workers local threads checkpoint_seconds deterministic"
_OF_CHECKPOINT = Only("table", _has("checkpoint"), "without --checkpoint", "with --checkpoint FILE")
_OF_RECIPE = Only(
    "checkpoint table seeds every_seed results",
    _names_recipe,
    "with a record or a checkpoint, which says what it is",
    "to a recipe",
)
_OF_RECORD = Only(
    "seeds every_seed results", _lacks("checkpoint"), "with --checkpoint", "to records, without it"
)
_OF_SEVERAL = (
    Only("seeds", _lacks("every_seed"), "with --every-seed, which names them all", "without it"),
    Only(
        "ray max_concurrent gpus_each address",
        lambda values: values["every_seed"] or len(set(values["seeds"])) > 1,
        "for one network",
        "to several: --seed 0 --seed 1, or --every-seed",
    ),
)

#: Every parameter of every verb. A verb or option without an entry fails the tests.
TABLE: Mapping[str, Usage] = {
    "list": Usage("kind pattern as_json"),
    "show": Usage(
        "recipe assignments data_roots as_json",
        (Only("docs", _lacks("as_json"), "with --json", "to the listing for people"),),
    ),
    "doctor": Usage("data_roots as_json"),
    "open": Usage("folder"),
    "completion": Usage("shell"),
    "pack": Usage("file made_by notes names weights predictions results"),
    "check-bundle": Usage("files data_roots"),
    "merge": Usage("files results"),
    "freeze": Usage("name compare out results"),
    "verify-store": Usage("results data_roots"),
    "new": Usage("name title folder dataset metric verb"),
    "check": Usage("package data_roots as_json"),
    # --dry-run describes the command that it stands in, and --smoke tries it: both take its options.
    "run": Usage(
        f"targets chosen assignments fast called {_PLACES} dry_run",
        (
            _WITHOUT_RAY,
            Only("seeds", _lacks("chosen"), "with --seed, which names the seeds", "without --seed"),
            Only(
                "again",
                lambda values: not values["dry_run"] and not values["smoke"],
                "with --dry-run or --smoke, which train nothing to its end",
                "to the run itself",
            ),
            Only(
                "as_json",
                lambda values: values["dry_run"] or values["smoke"],
                "by a run, whose records are its result",
                "to --dry-run and --smoke",
            ),
            Only(
                "step_seconds",
                lambda values: values["dry_run"],
                "by a run, which measures its own",
                "to --dry-run",
            ),
            Only("smoke", _lacks("dry_run"), "with --dry-run, which runs nothing", "without --dry-run"),
            Only(
                "save_predictions tensorboard track",
                _lacks("smoke"),
                "with --smoke, which keeps figures alone",
                "to the run itself, and to its --dry-run",
            ),
        ),
    ),
    "curve": Usage(
        "recipe split step out assignments data_roots results device workers as_json ray max_concurrent "
        "gpus_each address"
    ),
    "grid": Usage(
        f"recipe chosen assignments evaluation only_tables out as_json {_PLACES}",
        (
            _WITHOUT_RAY,
            Only(
                "tensorboard track",
                lambda values: not values["only_tables"],
                "with --only-tables, which runs nothing",
                "without it",
            ),
            Only("seeds", _lacks("chosen"), "with --seed, which names the seeds", "without --seed"),
        ),
    ),
    "search": Usage(
        f"recipe trials sampler scheduler seed objective_split warm_start assignments out {_PLACES} "
        "tensorboard track",
        (
            _WITHOUT_RAY,
            Only("grid_points", _is("sampler", "grid"), "by this sampler", "with --sampler grid"),
            Only(
                "share",
                _is("objective_split", "held-out"),
                "with this --objective-split, of which nothing is held out",
                "with --objective-split held-out",
            ),
        ),
    ),
    "tune": Usage(
        f"targets trials seeds sampler scheduler seed objective_split assignments out as_json {_PLACES} "
        "tensorboard track",
        (
            _WITHOUT_RAY,
            Only(
                "share",
                _is("objective_split", "held-out"),
                "with this --objective-split, of which nothing is held out",
                "with --objective-split held-out",
            ),
        ),
    ),
    "predict": Usage(
        "source pictures out scores tile protocol_name network assignments data_roots device",
        (
            _OF_RECIPE,
            _OF_CHECKPOINT,
            _OF_RECORD,
            *_OF_SEVERAL,
        ),
    ),
    "export": Usage(
        "recipe out model checkpoint assignments data_roots",
        (
            _OF_RECIPE,
            Only(
                "split output form protocol_name encoding device workers",
                _lacks("model"),
                "with --model, which writes the network",
                "to label maps and activation maps",
            ),
            _OF_CHECKPOINT,
            _OF_RECORD,
            *_OF_SEVERAL,
            Only(
                "protocol_name network",
                _segments,
                "for pseudo labels and activation maps",
                "with --output segmentation or --format server",
            ),
            Only("encoding", _is("form", "png"), "in this form", "with --format png"),
        ),
    ),
    "evaluate": Usage(
        "predictions split data_roots",
        (
            Only(
                "recipe checkpoint table protocol_name network output save assignments results device "
                "workers ray max_concurrent gpus_each address",
                _lacks("predictions"),
                "with --predictions, which stands alone: label maps are counted as they are",
                "to a recipe's records and checkpoints",
            ),
            Only("dataset", _has("predictions"), "without --predictions", "with --predictions FOLDER"),
            Only("table save", _has("checkpoint"), "without --checkpoint", "with --checkpoint FILE"),
            Only(
                "encoding",
                lambda values: values["predictions"] is not None or values["save"] is not None,
                "where no label maps are read or written",
                "to --predictions, and to what --save writes",
            ),
            Only(
                "results ray max_concurrent gpus_each address",
                _lacks("checkpoint"),
                "with --checkpoint",
                "to records, without it",
            ),
        ),
    ),
    "data prepare": Usage(
        "name data_roots",
        (
            Only(
                "source workers",
                _prepares,
                "for this data set, which is used as it is distributed",
                "to data sets that are built from official files, such as voc2012 and coco2014",
            ),
        ),
    ),
    "data verify": Usage(
        "name data_roots splits workers file recipe",
        (Only("assignments", lambda v: v["recipe"] is not None, "without --for", "to the recipe of --for"),),
    ),
    "data labels": Usage(
        "name kind split out data_roots form workers",
        (
            Only("folder", _not("form", None), "by the simulator", "with --format, to imports"),
            Only("background", _is("form", "clicks"), "here", "with --format clicks"),
            Only("unlabelled encoding", _is("form", "png"), "here", "with --format png"),
            Only("stroke", _strokes_drawn, "here", "to simulated scribbles and points, and drawn files"),
            Only("seed", _random, "here, where nothing is random", "to simulated labels and to shares"),
            Only("block_share", _is("kind", "block"), "here", "with --kind block"),
            Only("block_share", _simulates, "by an import", "to simulated blocks, without --format"),
            Only("box_inside", _is("kind", "box"), "here", "with --kind box"),
            Only("box_inside", _not("form", "png"), "with PNG files", "to boxes that are drawn here"),
            Only("clicks", _is("kind", "point"), "here", "to simulated points: --kind point"),
            Only("clicks", _simulates, "by an import", "to simulated points, without --format"),
            Only("keep strokes images", _not("kind", "image"), "for image tags", "to labels of pixels"),
        ),
    ),
    "data show": Usage(
        "name split chosen folders seed out data_roots",
        (Only("number", _lacks("chosen"), "with --id, which names the pictures", "without --id"),),
    ),
    "data miniature": Usage("name folder train val seed"),
    "data mini": Usage(),
    "data pretrain-mini": Usage("encoder out seed steps"),
    "leaderboard": Usage(
        "check",
        (
            Only(
                "results out dataset suites names metrics label formats as_json",
                _lacks("check"),
                "with --validate, which reads no records and writes nothing",
                "without --validate",
            ),
        ),
    ),
    "plot": Usage(
        "results out dataset label kind names formats",
        (
            Only(
                "data_roots device",
                _is("kind", "qualitative"),
                "for plots of figures",
                "with --kind qualitative",
            ),
        ),
    ),
    "claims": Usage("results out suites formats as_json"),
    "report": Usage(
        "results out dataset suites names metrics label plots",
        (Only("data_roots device", _has("plots"), "with --no-plots", "to pictures with predictions"),),
    ),
    "compare": Usage("first second evaluation metrics assignments data_roots results as_json"),
    "import": Usage(
        "folder metadata results",
        (
            Only(
                "data_roots",
                _has("metadata"),
                "for records, which were scored already",
                "to predictions, with --metadata FILE",
            ),
        ),
    ),
}
