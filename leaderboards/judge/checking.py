"""Whether what a package brings keeps the promises that ours keeps: methods, data sets, recipes, published
cells, claims, protocols and verbs, each broken promise in one sentence that names the thing and the place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from harness.basics.errors import UserError, nearest, words
from harness.basics.registry import (
    CLAIM_PACKAGES,
    COMMANDS,
    DATASETS,
    METHODS,
    METRICS,
    PLOTS,
    PROTOCOL_PACKAGES,
    PUBLISHED_PACKAGES,
    RECIPE_PACKAGES,
    Registry,
    toml_files,
)
from harness.basics.text import one_line
from harness.data.base import IGNORE, DatasetInfo
from harness.data.sets.roots import open_dataset
from harness.engine import promises
from harness.engine.blame import blamed
from harness.engine.rehearsal import rehearse
from harness.recipes import recipe_files
from harness.recipes.protocols import protocol_problems
from harness.recipes.resolving import Resolved, usable
from leaderboards.judge.statements import Claim, claim_problems, known_claims, read_claims, validate_claims
from leaderboards.rows.metrics import ClassCounts
from leaderboards.rows.published import published, published_problems, read_cells, validate_cells

#: Everything that packages bring, by what it is called in a summary.
BROUGHT: dict[str, Registry] = {
    "methods": METHODS,
    "data sets": DATASETS,
    "recipe packages": RECIPE_PACKAGES,
    "packages of cells": PUBLISHED_PACKAGES,
    "packages of claims": CLAIM_PACKAGES,
    "packages of protocols": PROTOCOL_PACKAGES,
    "metrics": METRICS,
    "plots": PLOTS,
    "verbs": COMMANDS,
}
#: The distribution that this project is.
OURS = "wsss-bench"


@dataclass(frozen=True)
class Breach:
    """A promise that is broken.

    Attributes:
        of: what breaks it, such as ``method mine`` or ``recipe mine/mini-scribble``.
        problem: one sentence.
        where: file, line or class; empty where ``of`` says it.
    """

    of: str
    problem: str
    where: str = ""

    def __str__(self) -> str:
        return one_line(f"{self.of}: {self.problem}" + (f" ({self.where})" if self.where else ""), 2000)


@dataclass(frozen=True)
class PackageReport:
    """What a check found.

    Attributes:
        package: whose things were checked.
        counts: number of things checked by kind.
        breaches: promises broken.
        remarks: what is no breach, and what could not be checked.
    """

    package: str
    counts: dict[str, int]
    breaches: tuple[Breach, ...]
    remarks: tuple[str, ...]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _packages_of(entry: EntryPoint) -> set[str]:
    """The names that a package goes by: of its distribution, and of its top-level module."""
    own = {_normal(entry.value.partition(":")[0].partition(".")[0])}
    return own | ({_normal(entry.dist.name)} if entry.dist is not None else set())


def packages() -> list[str]:
    """Distributions other than ours that bring something, sorted."""
    found = {
        entry.dist.name if entry.dist is not None else entry.value.partition(":")[0].partition(".")[0]
        for registry in BROUGHT.values()
        for entries in registry.entries().values()
        for entry in entries
    }
    return sorted(name for name in found if _normal(name) != OURS)


def _brought(registry: Registry, package: str) -> list[str]:
    """Names of a registry that a package brings."""
    return [
        name
        for name, entries in sorted(registry.entries().items())
        if any(_normal(package) in _packages_of(entry) for entry in entries)
    ]


def check_package(
    package: str, data_roots: Sequence[str] = (), say: Callable[[str], None] = lambda text: None
) -> PackageReport:
    """Ask everything that a package brings for what it promises.

    Args:
        package: name of a distribution, or of its top-level module.
        data_roots: as ``--data-root``, for its data sets; those without a root are checked by what they
            declare.
        say: told what is being checked.

    Raises:
        UserError: no such package brings anything.
    """
    own = {kind: _brought(registry, package) for kind, registry in BROUGHT.items()}
    if not any(own.values()):
        known = [*packages(), OURS]
        raise UserError(
            f"no installed package {package!r} brings methods, data sets, recipes or verbs",
            where="PACKAGE",
            remedy=f"{nearest(package, known)}; install your own first (pip install -e FOLDER)",
        )
    breaches: list[Breach] = []
    for registry in BROUGHT.values():
        problems = registry.problems()
        for name in own_names(registry, own):
            if name in problems:
                breaches.append(_told(f"{registry.noun} {name}", problems[name]))
    recipes, wrong = usable()
    files = {file for name, file in toml_files(RECIPE_PACKAGES) if name in own["recipe packages"]}
    stems = {file.stem for file in files}
    mine = {n: r for n, r in recipes.items() if n.partition("/")[0] in stems}
    broken = {n: e for n, e in wrong.items() if n.partition("/")[0] in stems}
    breaches += [_told(f"recipe {n}" if "/" in n else f"recipe file {n}", e) for n, e in broken.items()]
    for name in own["methods"]:
        say(f"method {name}")
        breaches += _of_method(name, {n: r for n, r in recipes.items() if r.recipe.method == name}, say)
    for name, resolved in mine.items():
        if resolved.recipe.method not in own["methods"]:
            say(f"recipe {name}")
            breaches += _asked(f"recipe {name}", _rehearsed, resolved)
            if borrowed := recipe_files.borrowed_method(name):
                breaches.append(Breach(f"recipe {name}", borrowed))
    remarks: list[str] = []
    for name in own["data sets"]:
        say(f"data set {name}")
        found = list(_asked(f"data set {name}", _of_dataset, name, tuple(data_roots), remarks))
        breaches += found
    counts = {k: len(v) for k, v in own.items() if "packages" not in k}
    counts["recipes"] = len(mine) + len([n for n in broken if "/" in n])
    cells, claims = _of_tables(own, recipes, stems, breaches, remarks)
    counts |= {"published cells": cells, "claims": claims}
    breaches += _of_verbs(own["verbs"])
    for name in own["metrics"]:
        breaches += _asked(f"metric {name}", _of_metric, name)
    return PackageReport(
        package,
        {k: v for k, v in counts.items() if v},
        _each_once(breaches),
        tuple(dict.fromkeys(remarks)),
    )


def own_names(registry: Registry, own: dict[str, list[str]]) -> list[str]:
    """Names of a registry among what a package brings."""
    return next(own[kind] for kind, other in BROUGHT.items() if other is registry)


def _told(of: str, error: UserError) -> Breach:
    problem = error.problem + (f"; {error.remedy}" if error.remedy else "")
    return Breach(of, problem, error.where or "")


def _asked(of: str, ask: Callable[..., Iterable[str]], *given: Any) -> Iterator[Breach]:
    """The breaches that a check yields; what code raises in between is one as well, with its line."""
    try:
        for problem in ask(*given):
            yield Breach(of, problem)
    except UserError as error:
        yield _told(of, error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # code of anybody, which may try to end the process
        text = next(iter(words(error).strip().splitlines()), "no message")
        line = blamed(error)
        there = f"; there, {line.tensors}" if line is not None and line.tensors else ""
        yield Breach(of, f"{type(error).__name__}: {text}{there}", str(line or ""))


def _each_once(breaches: Iterable[Breach]) -> tuple[Breach, ...]:
    """Breaches, one of those that arise on one line: other recipes and questions come to it too."""
    found: dict[object, Breach] = {}
    for breach in breaches:
        found.setdefault(breach.where if ", line " in breach.where else breach, breach)
    return tuple(found.values())


# --- methods and recipes -------------------------------------------------------------------------------


def _rehearsed(resolved: Resolved) -> Iterator[str]:
    rehearse(resolved)
    yield from ()


def _of_method(name: str, recipes: dict[str, Resolved], say: Callable[[str], None]) -> Iterator[Breach]:
    try:
        cls = METHODS.get(name)
    except UserError:
        return  # told with its registry
    if cls.name != name:
        yield Breach(f"method {name}", f"its class says name = {cls.name!r}; write one name in both places")
    for of_class in promises.OF_METHODS:
        yield from _asked(f"method {name}", of_class, cls)
    kinds: dict[str, list[str]] = {}
    for recipe_name, resolved in recipes.items():
        kinds.setdefault(resolved.recipe.supervision, []).append(recipe_name)
    for kind in sorted(cls.supervision - set(kinds)):
        text = f"it accepts {kind!r} supervision and has no recipe under it: write one, or accept less"
        yield Breach(f"method {name}", text)
    small = []
    # Full networks are tried on the meta device alone where there is a miniature.
    for names in kinds.values():
        quick = [n for n in names if recipes[n].recipe.dataset == "mini"]
        small += promises.distinct_recipes(quick or names)
    for recipe_name, resolved in recipes.items():
        of = f"recipe {recipe_name}"
        found = list(_asked(of, _rehearsed, resolved))
        yield from found
        if found or recipe_name not in small:
            continue
        say(of)
        for promise in promises.OF_RECIPES:
            yield from _asked(of, promise, recipe_name)


# --- data sets -----------------------------------------------------------------------------------------


def _of_dataset(name: str, data_roots: tuple[str, ...], remarks: list[str]) -> Iterator[str]:
    """What a data set declares holds together; where it can be opened, its first pictures are read."""
    with suppress(UserError):
        info = DATASETS.get(name).info
        if not isinstance(info, DatasetInfo):
            yield f"info is {type(info).__name__}, no DatasetInfo"
            return
        if info.name != name:
            yield f"its info says name = {info.name!r}; write one name in both places"
        if len(info.classes) < 2 or len(set(info.classes)) < len(info.classes):
            yield f"classes are two or more distinct names, not {info.classes!r}"
        if len(info.classes) > IGNORE - 1:
            yield f"{len(info.classes)} classes do not fit below {IGNORE - 1}"
        if len(info.palette) != len(info.classes):
            yield f"the palette has {len(info.palette)} colours for {len(info.classes)} classes"
        if info.background is not None and not 0 <= info.background < len(info.classes):
            yield f"background is class {info.background} of {len(info.classes)}"
        if not info.splits or any(n < 1 for n in info.splits.values()):
            yield f"splits name their official numbers of pictures, 1 or more, not {dict(info.splits)!r}"
        try:
            dataset = open_dataset(name, data_roots)
        except UserError as error:
            remarks.append(f"data set {name}: its files were not read ({error.problem})")
            return
        yield from _of_files(dataset, info)


def _of_files(dataset: Any, info: DatasetInfo) -> Iterator[str]:
    members: dict[str, set[str]] = {}
    for split in info.splits:
        try:
            ids = list(dataset.ids(split))
        except UserError as error:
            yield f"split {split}: {error.problem}"
            continue
        members[split] = set(ids)
        if len(members[split]) < len(ids):
            yield f"split {split}: a picture stands twice in its list"
        for image_id in ids[:2]:
            yield from _of_picture(dataset, info, split, image_id)
    for one, other in combinations(members, 2):
        if both := members[one] & members[other]:
            yield f"splits {one} and {other} share {len(both)} pictures, such as {min(both)!r}"


def _of_picture(dataset: Any, info: DatasetInfo, split: str, image_id: str) -> Iterator[str]:
    image = dataset.read_image(image_id)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        yield f"read_image({image_id!r}) gives {image.dtype} {image.shape}, not uint8 (H, W, 3)"
        return
    if tuple(dataset.picture_size(image_id)) != image.shape[:2]:
        yield f"picture_size({image_id!r}) is not the size of read_image"
    if not dataset.has_mask(image_id, split):
        return
    mask = dataset.read_mask(image_id, split)
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        yield f"read_mask({image_id!r}) gives {mask.dtype} {mask.shape}, not uint8 {image.shape[:2]}"
    elif wrong := sorted(set(np.unique(mask).tolist()) - {*range(info.num_classes), IGNORE}):
        yield f"read_mask({image_id!r}) gives {wrong[0]}, which is no class and not {IGNORE} (void)"


# --- tables --------------------------------------------------------------------------------------------


def _of_tables(
    own: dict[str, list[str]],
    recipes: dict[str, Resolved],
    stems: set[str],
    breaches: list[Breach],
    remarks: list[str],
) -> tuple[int, int]:
    """Cells and claims of a package, and those that recipes of its files cite; their numbers."""
    wrong = {**published_problems(), **claim_problems(), **protocol_problems()}
    files: dict[str, list[Path]] = {}
    for kind in ("packages of cells", "packages of claims", "packages of protocols"):
        files[kind] = [file for name, file in toml_files(BROUGHT[kind]) if name in own[kind]]
        for file in files[kind]:
            breaches += [_told(n, e) for n, e in wrong.items() if n.startswith(f"{file.name}, ")]
    sources: set[str] = set()
    cells: set[str] = set()
    for file in files["packages of cells"]:
        with suppress(UserError):  # told above
            read = read_cells([file])
            sources |= set(read.sources)
            cells |= set(read.cells)
    for finding in validate_cells(recipes):
        if finding.recipe.partition("/")[0] in stems or finding.cell in cells:
            if finding.kind in ("unknown cell", "disagreement"):
                breaches.append(Breach(f"recipe {finding.recipe}", finding.text))
            else:
                remarks.append(str(finding))
    claims: dict[str, Claim] = {}
    for file in files["packages of claims"]:
        with suppress(UserError):
            claims |= {key: known_claims().get(key, claim) for key, claim in read_claims([file]).items()}
    for text in validate_claims(recipes, claims, published(), every=True):
        breaches.append(Breach("claim " + text.partition(": ")[0], text.partition(": ")[2]))
    return len(cells), len(claims)


def _of_metric(name: str) -> Iterator[str]:
    """A metric gives numbers, where a class never occurs and where nothing was counted as well."""
    with suppress(UserError):  # told with its registry
        metric = METRICS.get(name)
        metric = metric() if isinstance(metric, type) else metric
        if metric.name != name:
            yield f"it says name = {metric.name!r}; write one name in both places"
        for counts in ([[5, 0, 0], [9, 1, 0], [6, 4, 0]], [[0, 0, 0]] * 3):
            hit, predicted, labelled = (np.array(line, dtype=np.int64) for line in counts)
            given = metric.of(ClassCounts(hit, predicted, labelled, predicted + labelled > 0))
            if not isinstance(given, int | float | np.number):
                yield f"its function gives {type(given).__name__}, no number"


def _of_verbs(names: Iterable[str]) -> Iterator[Breach]:
    for name in names:
        with suppress(UserError):
            command = COMMANDS.get(name)
            if not (command.help or command.short_help):
                yield Breach(f"verb {name}", "it has no help: write a docstring")
