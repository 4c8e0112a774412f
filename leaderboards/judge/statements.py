"""What papers say, as data: which recipe should lie above which, in which evaluation, by what margin.

``claims/<method>.toml`` holds one table for each statement and below it the comparisons that stand for it;
:mod:`leaderboards.judge.claims` takes them to records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.basics.errors import UserError, nearest
from harness.basics.files import read_toml
from harness.basics.registry import CLAIM_PACKAGES, FORGET, METHODS, added
from harness.basics.schema import load, schema
from harness.recipes.given import one
from harness.recipes.resolving import resolve
from harness.recipes.row_names import row_parts
from leaderboards.rows.published import Published, published

#: Folder of the packaged claims.
CLAIMS_FOLDER = Path(__file__).parents[1] / "claims"


@schema
class Pair:
    """Two recipes and the evaluation in which one should lie above the other."""

    better: str
    """Recipe that the statement puts first, or a row by its name: `METHOD/RECIPE (crop=48)`."""
    worse: str
    """Recipe, or row, that it is compared with."""
    evaluation: str = "val-single"
    """Name of the evaluation: split, protocol and, where unusual, network, output and checkpoint."""
    direction: Literal["above", "not below"] = "above"
    """`above`: the difference exceeds the margin; `not below`: it exceeds minus the margin."""
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Points of mIoU, fixed beforehand."""
    suites: tuple[str, ...] = ()
    """Suites whose claims this is one of."""

    @property
    def bound(self) -> float:
        """What the difference must exceed, in points."""
        return self.margin if self.direction == "above" else -self.margin

    @property
    def relation(self) -> str:
        """How the first should lie to the second, in words that its name follows."""
        if self.direction == "not below":
            return f"less than {self.margin:g} below" if self.margin else "not below"
        return f"more than {self.margin:g} above" if self.margin else "above"


@schema
class Claim:
    """One statement of a paper."""

    id: str
    """Name of its table, unique over all files."""
    method: str
    """Name of its file: the method whose paper it is."""
    statement: str
    """One sentence, in words that need not be the paper's."""
    paper: str = ""
    """Key of a source of published cells."""
    place: str = ""
    """Where the source says so, or what could not be read."""
    comparisons: tuple[Pair, ...] = Field(min_length=1)
    """What stands for it."""


def read_claims(files: Iterable[Path]) -> dict[str, Claim]:
    """Read and validate tables of claims, by id.

    Raises:
        UserError: invalid TOML, an unknown key, a value of the wrong type, an id that stands twice.
    """
    found: dict[str, Claim] = {}
    for file in files:
        for key, claim in _read(file).items():
            if key in found:
                raise UserError(
                    f"the claim {key!r} stands twice", where=f"{file.name} [{key}]", remedy="rename one"
                )
            found[key] = claim
    return found


def _read(file: Path) -> dict[str, Claim]:
    found = {}
    for key, table in read_toml(file).items():
        if not isinstance(table, Mapping):
            raise UserError(f"{key!r} is no table", where=file.name, remedy="write [claim] tables")
        found[key] = load(Claim, {**table, "id": key, "method": file.stem}, f"{file.name} [{key}]")
    return found


def known_claims() -> dict[str, Claim]:
    """All claims: the packaged ones, and those of other packages (entry point ``wsss.claims``)."""
    return _known_claims()[0]


def claim_problems() -> dict[str, UserError]:
    """Files of claims of other packages that cannot be used, and why."""
    return _known_claims()[1]


@cache
def _known_claims() -> tuple[dict[str, Claim], dict[str, UserError]]:
    ours = read_claims(sorted(CLAIMS_FOLDER.glob("*.toml")))
    return added(CLAIM_PACKAGES, ours, _read, "claim")


FORGET.append(_known_claims.cache_clear)


def check_suites(wanted: Sequence[str], known: Mapping[str, Claim] | None = None) -> None:
    """Raises UserError for a suite that no claim belongs to."""
    for suite in wanted:
        if suite not in claim_suites(known):
            raise UserError(
                f"no claim belongs to the suite {suite!r}",
                where="--suite",
                remedy=nearest(suite, claim_suites(known)),
            )


def claim_suites(known: Mapping[str, Claim] | None = None) -> list[str]:
    """Suites that some comparison belongs to."""
    known = known_claims() if known is None else known
    return sorted({suite for claim in known.values() for pair in claim.comparisons for suite in pair.suites})


def recipe_of(name: str) -> str:
    """The recipe of a side, which may be the name of a row."""
    return (row_parts(name) or (name,))[0]


def compared_recipes(suites: Sequence[str]) -> list[str]:
    """The recipes that claims compare, those of some suites alone where any is named."""
    pairs = (pair for claim in known_claims().values() for pair in claim.comparisons)
    chosen = [pair for pair in pairs if not suites or set(suites) & set(pair.suites)]
    return sorted({recipe_of(name) for pair in chosen for name in (pair.better, pair.worse)})


def validate_claims(
    recipes: Mapping[str, Any],
    known: Mapping[str, Claim] | None = None,
    cells: Published | None = None,
    *,
    every: bool = False,
) -> list[str]:
    """What is wrong with the claims of registered methods, one sentence each.

    Args:
        recipes: name to :class:`harness.recipes.resolving.Resolved`.
        known: all claims by default. A claim of a method that is not registered is not checked, unless
            ``every`` one is.
        cells: all published cells by default.

    Returns:
        Recipes and sources that do not exist, evaluations that a recipe does not have, recipes of one
        comparison that differ in data set, suites that hold neither recipe.
    """
    known = known_claims() if known is None else known
    cells = published() if cells is None else cells
    findings = []
    for claim in known.values():
        if claim.paper and claim.paper not in cells.sources:
            findings.append(
                f"{claim.id}: unknown source {claim.paper!r}; {nearest(claim.paper, cells.sources)}"
            )
        if claim.method not in METHODS and not every:
            continue
        for pair in claim.comparisons:
            both = [recipes.get(recipe_of(name)) for name in (pair.better, pair.worse)]
            for name, resolved in zip((pair.better, pair.worse), both, strict=True):
                if row_parts(name) is not None and resolved is not None:
                    try:
                        named = one(name)
                        resolve(named.name, named.overrides)
                    except UserError as error:
                        findings.append(f"{claim.id}: {name}: {error.problem}")
                if resolved is None:
                    findings.append(f"{claim.id}: unknown recipe {name!r}; {nearest(name, recipes)}")
                elif pair.evaluation not in (names := [e.name for e in resolved.recipe.evaluation]):
                    hint = nearest(pair.evaluation, names)
                    findings.append(f"{claim.id}: {name} has no evaluation {pair.evaluation!r}; {hint}")
            present = [r.recipe for r in both if r is not None]
            if len({r.dataset for r in present}) > 1:
                findings.append(f"{claim.id}: {pair.better} and {pair.worse} are of different data sets")
            held = {suite for r in present for suite in r.suites}
            findings += [f"{claim.id}: no recipe is in the suite {s!r}" for s in pair.suites if s not in held]
    return findings
