"""Options that several verbs share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from harness.basics.errors import UserError
from harness.basics.text import one_line
from harness.records.object_store import is_uri

if TYPE_CHECKING:
    from harness.data.base import Dataset
    from harness.records.records import Store
    from harness.running.inference.several import OfSeed
    from harness.running.jobs.job import Resources
    from harness.running.trials.trial import Options


class Number(click.ParamType):
    """A number of GPUs, or ``groups``."""

    name = "number"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float | Literal["groups"]:
        """A number from 0 on, or the word."""
        if value == "groups":
            return "groups"
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'groups'", parameter, context)
        if not 0 <= number <= _MOST_GPUS:  # also what is no number
            self.fail(f"{value} does not lie between 0 and {_MOST_GPUS}", parameter, context)
        return number


_MOST_GPUS = 4096


class Real(click.FloatRange):
    """A finite number in a range; ``nan`` lies in every range of click's own."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """A float."""
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", parameter, context)
        return number


#: ``share`` of the training split that a search compares trials on.
HELD_OUT_SHARE = click.option(
    "--held-out", "share", type=Real(), default=0.2, show_default=True, help="Share that is held out."
)
#: ``scheduler`` of a search.
EARLY_STOPPING = click.option(
    "--scheduler", default="asha", show_default=True, help="Early stopping: asha, median or none."
)
#: Processes and threads.
COUNT = click.IntRange(0, 4096)
#: Seeds that every generator takes.
SEED_RANGE = click.IntRange(0, 2**32 - 1)


F = TypeVar("F", bound=Callable[..., Any])


class RecordStore(click.ParamType):
    """A folder (:class:`pathlib.Path`), or the URI of a record store as text."""

    name = "directory or URI"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """A URI stays as it is."""
        if is_uri(value):
            return value
        return click.Path(path_type=Path, file_okay=False).convert(value, parameter, context)


class OutputPath(click.Path):
    """A folder, or a file, that a verb writes: one that cannot be written is refused before the verb begins
    (:class:`harness.cli.usage.Verb`).

    Args:
        file: a file.
        dash: ``-`` stands for standard output.
    """

    def __init__(self, *, file: bool = False, dash: bool = False) -> None:
        super().__init__(path_type=Path, readable=False, allow_dash=dash)
        self.file = file


def _noted(ctx: click.Context, parameter: click.Parameter, value: Path | str) -> Path | str:
    ctx.meta[RESULTS_META] = value
    return value


#: Where a verb notes its record store, for words on what went wrong.
RESULTS_META = "wsss.results"

RESULTS = click.option(
    "--results",
    callback=_noted,
    type=RecordStore(),
    metavar="DIR|URI",
    default=Path("results"),
    show_default=True,
    help="The record store: a folder, or a URI that pyarrow opens, such as s3://bucket/prefix or gs://..., "
    "where only one driver may run at a time.",
)


def _own_data(context: click.Context, parameter: click.Parameter, data_roots: tuple[str, ...]) -> Any:
    """Data sets of the user's own are known by name as soon as their roots are."""
    if context.resilient_parsing or not data_roots:  # a shell completes a word, and waits
        return data_roots
    from harness.data.sets.own import given_roots, register

    register(data_roots)
    context.call_on_close(given_roots.clear)  # another command of this process has its own
    return data_roots


DATA_ROOT = click.option(
    "--data-root",
    "data_roots",
    multiple=True,
    metavar="[NAME=]DIR",
    callback=_own_data,
    is_eager=True,
    help="Parent of the official data folders, or one data set's own; repeatable.",
)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto (CUDA where there is one), cpu, cuda, cuda:N."
)
WORKERS_OPTION = click.option(
    "--workers", type=COUNT, default=0, show_default=True, help="Loader processes per trial."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable, on standard output.")
SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe, as in --set optimiser.lr=0.005; repeatable.",
)
ENCODING = click.option(
    "--encoding",
    type=click.Choice(["classes", "files"]),
    help="Whose numbers label maps hold: classes (0..K-1) or the data set's own files, as its test server "
    "wants them [default: found where it can be only one; written as classes].",
)
#: Which trained networks: ``checkpoint``, ``table``, ``seeds``, ``every_seed`` and ``network``.
TRAINED = (
    click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="A network's file [default: the record of --seed].",
    ),
    click.option("--table", help="Whose checkpoint it is; this project's own by default."),
    click.option(
        "--seed",
        "seeds",
        type=SEED_RANGE,
        multiple=True,
        help="Which record of the recipe [default: 0]. Several write seed-N in the folder; repeatable.",
    ),
    click.option("--every-seed", is_flag=True, help="Every finished record of the recipe."),
    click.option("--network", default="default", show_default=True, help="Which of the method's networks."),
)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order given."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_MOST = click.option("--max-concurrent", type=click.IntRange(1, 100_000), help="Most of them at a time.")
_ADDRESS = click.option("--address", help="Join this Ray cluster instead of starting a local one.")

#: Work that is done in this process unless Ray is asked for: ``ray``, ``max_concurrent``, ``gpus_each`` and
#: ``address``, see :func:`on_request`.
ON_REQUEST = (
    click.option(
        "--ray",
        is_flag=True,
        help="Records side by side on Ray, not one after another here; so does each of the next three.",
    ),
    _MOST,
    click.option(
        "--gpus-each", type=Real(0, 1), help="GPUs of each record on Ray [default: 1 with CUDA, else 0]."
    ),
    _ADDRESS,
)


def on_request(
    ray: bool, max_concurrent: int | None, gpus_each: float | None, address: str | None, options: Options
) -> Resources | None:
    """What :data:`ON_REQUEST` comes to; None where Ray was not asked for.

    Raises:
        UserError: the device and the GPUs contradict each other.
    """
    from harness.basics import devices
    from harness.running.jobs.job import Resources

    if not ray and max_concurrent is None and gpus_each is None and address is None:
        return None
    cuda = devices.device_named(options.device, devices.machine()).type == "cuda"
    gpus = float(cuda) if gpus_each is None else gpus_each
    devices.of_workers(options.device, gpus)  # refuses what contradicts itself
    return Resources(options.workers + 1.0, gpus, max_concurrent, address)


_EXECUTION = (
    DATA_ROOT,
    RESULTS,
    DEVICE,
    click.option(
        "--workers",
        type=COUNT,
        help="Loader processes of each process of a trial [default: with CUDA here, its share of the cores "
        "less one, 8 at most; else 0].",
    ),
    click.option("--local", is_flag=True, help="One after another in this process, without Ray."),
    _MOST,
    click.option(
        "--cpus-per-trial",
        type=Real(0.1, 4096),
        help="Cores per trial, for all its processes [default: workers + 1 for each].",
    ),
    click.option(
        "--gpus-per-trial",
        type=Number(),
        metavar="N|groups",
        help="GPUs per trial. A fraction lets trials share one; several share the trial's groups (DDP), with "
        "'groups' one for each group of the recipe [default: 1 with CUDA, else 0].",
    ),
    click.option(
        "--processes-per-trial",
        type=click.IntRange(1, 4096),
        help="Processes that share a trial's groups [default: one for each GPU of the trial].",
    ),
    _ADDRESS,
    click.option(
        "--threads", type=click.IntRange(1, 4096), default=1, show_default=True, help="CPU threads per trial."
    ),
    click.option(
        "--checkpoint-seconds",
        type=Real(0, 10**9),
        default=60.0,
        show_default=True,
        help="Least time between checkpoints.",
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        help="Kernels that give the same bits every time, on GPUs too, where torch has them; operations "
        "that have none are named, in the record as well. Slower.",
    ),
    click.option(
        "--tensorboard",
        is_flag=True,
        help="Write event files to tensorboard/RECIPE/DIGEST/seed-N beside the record store; "
        "`tensorboard --logdir tensorboard` shows them.",
    ),
    click.option(
        "--track",
        "track",
        type=click.Choice(["wandb", "mlflow"]),
        multiple=True,
        help="Also follow trials there, where that package is installed; repeatable.",
    ),
)


def shares(
    gpus: float | Literal["groups"] | None, processes: int | None, cuda: bool, local: bool
) -> tuple[int, float]:
    """How many processes a trial has (0: one for each group of its recipe), and how many GPUs each.

    Args:
        gpus: as on the command line.
        processes: likewise.
        cuda: whether trials run on GPUs unless told otherwise.
        local: whether they run in this process.

    Raises:
        UserError: the two do not go together.
    """
    if gpus == "groups":
        if processes is not None:
            raise UserError("either one process for each group, or a number", where="--processes-per-trial")
        count, each = 0, 1.0
    else:
        wanted = float(cuda) * (processes or 1) if gpus is None else gpus
        if wanted > 1 and wanted != int(wanted):
            raise UserError(
                f"{wanted:g} GPUs cannot be shared out", where="--gpus-per-trial", remedy="a whole number"
            )
        count = processes or max(int(wanted), 1)
        if count > 1 and wanted and wanted != count:
            raise UserError(
                f"{count} processes on {wanted:g} GPUs: each takes one of its own",
                where="--processes-per-trial",
                remedy="leave it out",
            )
        each = wanted / count
    if local and count != 1:
        raise UserError(
            "this process alone cannot share a trial's groups",
            where="--local",
            remedy="drop --local: Ray places the processes",
        )
    return count, each


def execution(function: Callable[..., Any]) -> Callable[..., Any]:
    """All options of where and how trials run.

    The decorated function receives them as ``options`` (:class:`harness.running.trials.trial.Options`) and
    ``resources`` (:class:`harness.running.jobs.job.Resources`; None with ``--local``).
    """

    @together(*_EXECUTION)
    @functools.wraps(function)
    def command(
        data_roots: tuple[str, ...],
        results: Path | str,
        device: str,
        workers: int | None,
        local: bool,
        max_concurrent: int | None,
        cpus_per_trial: float | None,
        gpus_per_trial: float | Literal["groups"] | None,
        processes_per_trial: int | None,
        address: str | None,
        threads: int,
        checkpoint_seconds: float,
        deterministic: bool,
        tensorboard: bool,
        track: tuple[str, ...],
        **own: Any,
    ) -> Any:
        from harness.basics import devices
        from harness.running.jobs.job import Resources
        from harness.running.trials.trial import Options

        machine = devices.machine()
        cuda = devices.device_named(device, machine).type == "cuda"
        if text := devices.unused(device, machine):
            aside(f"warning: {text}")
        processes, gpus = shares(gpus_per_trial, processes_per_trial, cuda, local)
        if not local:
            devices.of_workers(device, gpus)  # refuses what contradicts itself
        if cpus_per_trial is not None and not processes:
            raise UserError(
                "groups differ from recipe to recipe, so cores are not shared out here",
                where="--cpus-per-trial",
                remedy="leave it out: every process gets workers + 1",
            )
        if workers is None:  # of another machine nothing is known
            there = devices.Machine() if address else machine
            workers = devices.loader_processes(gpus, there, devices.cores_here(), devices.shared_room())
            if cpus_per_trial is not None:
                workers = max(min(workers, int(cpus_per_trial / processes) - 1), 0)
        options = Options(
            results=results,
            data_roots=data_roots,
            device=device,
            workers=workers,
            threads=threads,
            checkpoint_seconds=checkpoint_seconds,
            tracking_root=Path.cwd() if isinstance(results, str) else None,
            trackers=(*(["tensorboard"] if tensorboard else []), *dict.fromkeys(track)),
            processes=processes,
            deterministic=deterministic,
        ).absolute()
        resources = Resources(
            cpus_per_process=workers + 1 if cpus_per_trial is None else cpus_per_trial / processes,
            gpus_per_process=gpus,
            max_concurrent=max_concurrent,
            address=address,
        )
        return function(options=options, resources=None if local else resources, **own)

    return command


def left_out(wrong: Mapping[str, UserError]) -> None:
    """Say by name what cannot be used, on stderr: everything else goes on."""
    for name, error in wrong.items():
        place = f" ({error.where})" if error.where else ""
        aside(f"left out: {name}: {error.problem}{place}")


def ended(store: Store) -> int:
    """Exit code of a verb that reads a store: 1, and a line for each, where damaged files were left out."""
    for error in store.left_out.values():
        aside(f"left out: {error.brief}")
    return 1 if store.left_out else 0


def opened_dataset(name: str, data_roots: tuple[str, ...]) -> Dataset:
    """The data set under the roots given, or the generated one in the cache."""
    from harness.basics.files import cache_folder
    from harness.data.sets.roots import open_dataset

    return open_dataset(name, data_roots, cache_folder())


def progress(what: str) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """What wraps pictures that are worked on one by one, so that a line says how far that is."""
    from harness.basics.progress import counted

    return lambda pictures, number: counted(pictures, number, what)


def of_every_seed(seeds: tuple[int, ...], every_seed: bool) -> tuple[int, ...] | None:
    """The seeds whose networks are asked for, None for those of all finished records; an empty tuple where it
    is one network, which writes into the folder itself.
    """
    if every_seed:
        return None
    return tuple(dict.fromkeys(seeds)) if len(set(seeds)) > 1 else ()


def said_by(networks: Iterable[OfSeed]) -> Iterator[OfSeed]:
    """What several networks have done, with notes and pictures that were left out said on the way.

    Raises:
        UserError: at the end, where one of them failed: that of the first.
    """
    failed = None
    for done in networks:
        for note in done.notes:
            aside(f"seed {done.seed}: {note}")
        left_out({one_line(str(path), 4096): error for path, error in done.left_out.items()})
        if done.error is None:
            yield done
        else:
            failed = failed or done.error
    if failed is not None:
        raise failed


def aside(text: str) -> None:
    """Say something that is no result: on stderr, in the look of errors."""
    from harness.basics.terminal import say

    say(text)


def undecided(coverage: float | None) -> None:
    """Say which share of what was scored has no decision, if any."""
    if coverage is not None and coverage < 1:
        click.echo(
            f"{100 * (1 - coverage):.2f} % of the scored pixels have no decision, which counts as wrong"
        )
