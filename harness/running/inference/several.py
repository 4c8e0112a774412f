"""Pictures predicted, and splits exported, by the networks of several seeds: each into a folder of its own,
one after another or side by side on Ray. The same call again goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.basics.errors import UserError
from harness.recipes.given import one
from harness.records.called import called_rows
from harness.running.inference.deployment import export_model
from harness.running.inference.export import export
from harness.running.inference.prediction import predict
from harness.running.inference.scoring import finished_records
from harness.running.jobs.calls import Call, results
from harness.running.jobs.job import Event, Resources
from harness.running.trials.trial import Options


@dataclass(frozen=True)
class OfSeed:
    """What one network has done.

    Attributes:
        seed: of its record.
        folder: that was written.
        result: what the function for one network gives; None where that failed.
        error: why it failed.
        notes: what a user must know of the result.
        left_out: pictures that cannot be decoded.
    """

    seed: int
    folder: Path
    result: Any = None
    error: UserError | None = None
    notes: Sequence[str] = ()
    left_out: Mapping[Path, UserError] = field(default_factory=dict)


def export_seeds(
    recipe: str, out: Path, seeds: Sequence[int] | None, resources: Resources | None, **named: Any
) -> Iterator[OfSeed]:
    """:func:`harness.running.inference.export.export` for several seeds.

    Args:
        recipe: its name, or a recipe file.
        out: ``seed-N`` of it are written.
        seeds: whose records; None for every finished one.
        resources: of each on Ray; None for this process.
        **named: what the function for one network takes.

    Yields:
        One for each, whether it went well or not; its result is an ``Exported``.

    Raises:
        UserError: the recipe is unknown, or a record is not there.
    """
    return _of_seeds(_export, recipe, out, seeds, resources, named)


def export_models(
    recipe: str, out: Path, seeds: Sequence[int] | None, resources: Resources | None, **named: Any
) -> Iterator[OfSeed]:
    """:func:`harness.running.inference.deployment.export_model` likewise, see :func:`export_seeds`."""
    return _of_seeds(_model, recipe, out, seeds, resources, named)


def predict_seeds(
    recipe: str,
    pictures: Sequence[Path],
    out: Path,
    seeds: Sequence[int] | None,
    resources: Resources | None,
    **named: Any,
) -> Iterator[OfSeed]:
    """:func:`harness.running.inference.prediction.predict` for several seeds, see :func:`export_seeds`; a
    result is the list of label maps that were written."""
    there = [picture.absolute() for picture in pictures]
    return _of_seeds(partial(_predict, there), recipe, out, seeds, resources, named)


def _of_seeds(
    function: Callable[..., Iterator[Event]],
    recipe: str,
    out: Path,
    seeds: Sequence[int] | None,
    resources: Resources | None,
    named: Mapping[str, Any],
) -> Iterator[OfSeed]:
    options: Options = named.get("options") or Options()
    asked = one(recipe, named.get("overrides"), called_rows(options.store))
    records = finished_records(asked.name, options.store, asked.overrides)
    found = sorted({record.seed for record in records})
    wanted = found if seeds is None else list(dict.fromkeys(seeds))
    for seed in set(wanted) - set(found):  # refused before the first is begun
        finished_records(asked.name, options.store, asked.overrides, seed)
    more = {**named, "overrides": dict(asked.overrides)}
    more.pop("options", None)
    calls = []
    for number, seed in enumerate(wanted):
        folder = out.absolute() / f"seed-{seed}"
        work = partial(function, asked.name, folder, seed, more)
        calls.append(Call(number, f"{asked.name} seed {seed}", work, options, folder))
    for seed, call, result in zip(wanted, calls, results(calls, resources, "networks"), strict=True):
        if isinstance(result, UserError):
            yield OfSeed(seed, call.folder, error=result)
        else:
            yield result


def _export(name: str, folder: Path, seed: int, named: dict[str, Any], options: Options) -> Iterator[Event]:
    notes: list[str] = []
    done = export(name, folder, seed=seed, options=options, say=notes.append, **named)
    yield Event(ended="finished", result=OfSeed(seed, folder, done, notes=notes))


def _model(name: str, folder: Path, seed: int, named: dict[str, Any], options: Options) -> Iterator[Event]:
    notes: list[str] = []
    done = export_model(name, folder, seed=seed, results=options.results, say=notes.append, **named)
    yield Event(ended="finished", result=OfSeed(seed, folder, done, notes=notes))


def _predict(
    pictures: Sequence[Path], name: str, folder: Path, seed: int, named: dict[str, Any], options: Options
) -> Iterator[Event]:
    notes: list[str] = []
    wrong: dict[Path, UserError] = {}
    files = predict(
        name,
        pictures,
        folder,
        seed=seed,
        results=options.results,
        data_roots=options.data_roots,
        device=options.device,
        left_out=wrong,
        say=notes.append,
        **named,
    )
    done = OfSeed(seed, folder, list(files), notes=notes)
    yield Event(ended="finished", result=replace(done, left_out=wrong))
