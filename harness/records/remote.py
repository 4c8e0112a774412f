"""A record store under a URI: everything works on a local mirror, which is filled and stored from here.

The store is the truth. A trial's folder is brought up to date before work begins in it and stored while
and after; readers bring what tables and plots need. The order of an upload keeps the promise of
:mod:`harness.records.records`: the training curve comes before the checkpoint it belongs to, JSON files
after what they describe, ``record.json`` last of all. So a trial that was stopped in the middle of an
upload is one that was stopped a little earlier.

Layout of a mirror, ``<cache>/stores/<digest of the URI>/``::

    files/...            as in the store
    state/....json       what the store held when a trial's folder was last brought or stored
    state/....lock       held by the process of this machine that works in a trial's folder
    staged/...           a checkpoint while it is uploaded and training goes on

It may be deleted whenever nothing runs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from filelock import Timeout

from harness.basics.errors import UserError
from harness.basics.files import whole_file
from harness.basics.progress import Bar
from harness.basics.reading import remembered
from harness.basics.schema import digest
from harness.basics.terminal import say
from harness.records.driver_claim import NAME as DRIVER
from harness.records.locks import HOLDER, LOCK, locked
from harness.records.object_store import Files, Stamp, in_parallel

#: What readers need beside JSON files.
_READ = frozenset({"history.csv", "per_image.npz", "boundary.npz", "error.txt"})
#: Suffixes of files that are never appended to.
_WHOLE = frozenset({".pt", ".npz", ".png", ".json"})
#: A trial's folder lies this deep: method, recipe, digest, seed.
_DEPTH = 4
#: Seconds after which a folder that is worked in is given up.
_PATIENCE = 30.0
#: Files of a trial's folder that mean something on one machine alone.
_HERE = frozenset({LOCK, HOLDER, DRIVER})
#: The one file that is deleted from the store when it goes: the trace of a failure that was mended.
_MENDED = "error.txt"


def for_readers(name: str) -> bool:
    """Whether tables, plots and claims need a file of a trial."""
    base = name.rpartition("/")[2]
    return (base in _READ or base.endswith(".json")) and not name.startswith("pseudo_labels/")


def for_work(name: str) -> bool:
    """Whether going on with a trial needs a file: all but pictures."""
    return not name.startswith("pseudo_labels/") and "/predictions/" not in name


def _rank(name: str) -> int:
    """Files of a higher rank are uploaded when those of lower ones are there."""
    base = name.rpartition("/")[2]
    if name == "record.json":
        return 3
    return 2 if base.endswith(".json") else 1 if base == "last.pt" else 0


def _stored(name: str) -> bool:
    """Whether a file of a folder belongs to it in the store: not what is half written, no lock, and of a
    search no trial, which has a folder of its own."""
    parts = name.split("/")
    passing = any(part.startswith(".") for part in parts) or parts[-1].endswith((".lock", ".part"))
    return not passing and name not in _HERE and parts[0] != "trials"


@dataclass
class _State:
    """What is known of a trial's folder: the store's listing, and local files equal to what is listed."""

    remote: dict[str, Stamp] = field(default_factory=dict)
    local: dict[str, Stamp] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> _State:
        def understood(found: dict[str, Any]) -> _State:
            return cls(*({n: (s, t) for n, (s, t) in found[k].items()} for k in ("remote", "local")))

        return remembered(file, understood, cls())  # unknown: everything is compared afresh

    def save(self, file: Path) -> None:
        with whole_file(file) as stream:
            json.dump({"remote": self.remote, "local": self.local}, stream)


class Mirror:
    """The local mirror of a store; made by :func:`mirror_of`.

    Args:
        uri: the store.
        place: the mirror's own folder.
    """

    def __init__(self, uri: str, place: Path) -> None:
        self.uri, self.place = uri, place
        self.files = Files(uri)
        #: The mirrored records, laid out as in the store.
        self.root = place / "files"
        #: Listings of trials' folders as last seen by this process.
        self.remote: dict[str, dict[str, Stamp]] = {}
        self._listed = False
        #: Folders whose local files are as listed.
        self._brought: set[str] = set()
        self._background: dict[str, _Background] = {}

    def __str__(self) -> str:
        return self.files.shown

    # --- what the store holds -----------------------------------------------------------------------

    def refresh(self, *patterns: str) -> None:
        """List the store once, and bring what readers need of the records whose recipe matches a glob.

        Raises:
            UserError: the store is not there, refuses, or cannot be reached.
        """
        found: dict[str, dict[str, Stamp]] = {}
        for name, stamp in self.files.listing(waits=None if self._listed else ()).items():
            parts = name.split("/", _DEPTH)
            if len(parts) > _DEPTH and parts[_DEPTH - 1].startswith("seed-"):
                found.setdefault("/".join(parts[:_DEPTH]), {})[parts[_DEPTH]] = stamp
        self.remote, self._listed = found, True
        wanted = {
            folder
            for folder, there in found.items()
            if "record.json" in there
            and any(fnmatch("/".join(folder.split("/")[:2]), pattern) for pattern in patterns)
        }
        behind = [folder for folder in sorted(wanted) if self._behind(folder, found[folder])]
        with Bar("fetching", len(behind), "records") as bar:

            def bring(folder: str) -> None:
                self._bring(folder, found[folder], for_readers, parallel=False)
                bar.advance()

            if behind:
                in_parallel(bring, behind)
        self._brought = wanted

    def listed(self, folder: Path) -> Mapping[str, Stamp]:
        """What the store holds of a trial, asked for where this process has not listed it yet; what readers
        need of it is local then."""
        name = self._name(folder)
        if name not in self.remote and not self._listed:
            self.pull(folder)
        there = self.remote.get(name, {})
        if there and name not in self._brought:
            self._bring(name, there, for_readers)
            self._brought.add(name)
        return there

    def pull(self, folder: Path, wanted: Callable[[str], bool] = for_readers) -> None:
        """List one trial's folder and bring what is wanted of it, by default what readers need."""
        name = self._name(folder)
        self.remote[name] = self._list(name)
        self._bring(name, self.remote[name], wanted)
        if wanted is for_readers or wanted is for_work:
            self._brought.add(name)

    def fetch(self, path: Path) -> None:
        """Bring one file of a trial's folder if the store has it."""
        parts = path.relative_to(self.root).as_posix().split("/", _DEPTH)
        folder = self.root.joinpath(*parts[:_DEPTH])
        if len(parts) > _DEPTH and parts[_DEPTH] in self.listed(folder):
            name = self._name(folder)
            self._bring(name, self.remote[name], lambda other: other == parts[_DEPTH])

    # --- a trial's folder -----------------------------------------------------------------------------

    @contextmanager
    def work(self, folder: Path, wanted: Callable[[str], bool] = for_work) -> Iterator[None]:
        """Work in a trial's folder: brought up to date first, stored in the end, and at every :meth:`save`.

        Args:
            folder: of the trial.
            wanted: which of its files the work needs.

        Raises:
            UserError: another process of this machine works there; the store cannot be read, or cannot
                be written to in the end.
        """
        name = self._name(folder)
        with self._held(name):
            self.remote[name] = self._list(name)
            self._bring_locked(name, self.remote[name], wanted)
            self._brought.add(name)
            self._background[name] = _Background(self, name)
            try:
                yield
            except BaseException:  # an interrupted trial has left a last checkpoint
                with reported():
                    self._finish(name)
                raise
            self._finish(name)

    def _finish(self, name: str) -> None:
        self._background.pop(name).wait()
        self._send(name, *self._changed(name))

    def save(self, folder: Path) -> None:
        """Within :meth:`work`: upload what is new while work goes on.

        A failure is reported and no more, since the next upload makes up for it.
        """
        if (background := self._background.get(self._name(folder))) is not None:
            background.save()

    def push(self, folder: Path) -> None:
        """Store what has changed in a trial's folder.

        Raises:
            UserError: the store refuses or cannot be reached; what it held before is whole.
        """
        name = self._name(folder)
        with self._held(name):
            self._send(name, *self._changed(name))

    def discard(self, folder: Path, unwanted: Callable[[str], bool]) -> None:
        """Delete files below a folder by their names relative to it, in the store alone."""
        name = self._name(folder)
        found = [f"{name}/{file}" for file in self.files.listing(name) if unwanted(file)]
        in_parallel(self.files.delete, found)

    # --- within -----------------------------------------------------------------------------------------

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.root).as_posix()

    def _list(self, name: str, waits: Sequence[float] | None = None) -> dict[str, Stamp]:
        listed = self.files.listing(name, waits=waits)
        return {file: stamp for file, stamp in listed.items() if _stored(file)}

    def _state(self, name: str) -> Path:
        return self.place / "state" / f"{name}.json"

    def _lock(self, name: str, timeout: float) -> AbstractContextManager[None]:
        return locked(self.place / "state" / f"{name}.lock", timeout)

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._lock(name, _PATIENCE))
            except Timeout:
                raise UserError(
                    "another process of this machine works on this trial",
                    where=self.root / name,
                    remedy="wait for it, or end it",
                ) from None
            yield

    def _ours(self, name: str) -> dict[str, Stamp]:
        """Local files of a trial that belong into the store."""
        root, found = self.root / name, {}
        for place, _, files in os.walk(root):
            for file in files:
                path = Path(place, file)
                relative = path.relative_to(root).as_posix()
                if _stored(relative):
                    with suppress(FileNotFoundError):  # a search removes checkpoints of trials that it stops
                        status = path.stat()
                        found[relative] = (status.st_size, status.st_mtime_ns)
        return found

    def _behind(self, name: str, there: Mapping[str, Stamp]) -> bool:
        state, root = _State.load(self._state(name)), self.root / name
        return state.remote != there or any(for_readers(n) and not (root / n).exists() for n in there)

    def _bring(
        self, name: str, there: dict[str, Stamp], wanted: Callable[[str], bool], *, parallel: bool = True
    ) -> None:
        """As :meth:`_bring_locked`; where a process of this machine works there, add what is missing."""
        try:
            with self._lock(name, 0):
                self._bring_locked(name, there, wanted, parallel=parallel)
        except Timeout:
            missing = [n for n in there if wanted(n) and not (self.root / name / n).exists()]
            in_parallel(lambda n: self._download(name, n, there), missing)

    def _bring_locked(
        self, name: str, there: dict[str, Stamp], wanted: Callable[[str], bool], *, parallel: bool = True
    ) -> None:
        """Bring what is missing. Where the store has changed, what differs is replaced or removed; else
        local files that differ are newer, from a process that was stopped before they were stored."""
        state, ours = _State.load(self._state(name)), self._ours(name)
        changed = state.remote != there
        needed = []
        for file, stamp in there.items():
            equal = state.remote.get(file) == stamp and state.local.get(file) == ours.get(file)
            outdated = changed and not equal
            if outdated and file in ours:
                (self.root / name / file).unlink()
                del ours[file]
            if file not in ours and wanted(file):
                needed.append(file)
        if changed:
            for file in set(ours) - set(there):
                (self.root / name / file).unlink()
        if parallel:
            in_parallel(lambda file: self._download(name, file, there), needed)
        else:
            for file in needed:
                self._download(name, file, there)
        if changed or needed:
            kept = {f: s for f, s in state.local.items() if f in there and f in ours}
            for file in needed:
                status = (self.root / name / file).stat()
                kept[file] = (status.st_size, status.st_mtime_ns)
            _State(dict(there), kept).save(self._state(name))

    def _download(self, name: str, file: str, there: Mapping[str, Stamp]) -> None:
        self.files.download(f"{name}/{file}", self.root / name / file, there[file][0])

    def _changed(self, name: str) -> tuple[dict[str, Stamp], Path]:
        """Local files that the store does not hold as they are, and where they lie."""
        state = _State.load(self._state(name))
        ours = self._ours(name).items()
        new = {f: s for f, s in ours if f not in state.remote or state.local.get(f) != s}
        return new, self.root / name

    def _send(self, name: str, files: Mapping[str, Stamp], source: Path) -> None:
        """Upload files in their order, and note what the store holds then."""
        mended = _MENDED in self.remote.get(name, {}) and not (self.root / name / _MENDED).exists()
        if mended:
            self.files.delete(f"{name}/{_MENDED}")
        if not files and not mended:
            return
        sent: dict[str, Stamp] = {}

        def upload(file: str) -> None:
            if (source / file).exists():
                self.files.upload(source / file, f"{name}/{file}")
                sent[file] = files[file]

        try:
            for rank in sorted({_rank(file) for file in files}):
                in_parallel(upload, [file for file in files if _rank(file) == rank])
        except BaseException:
            with suppress(UserError):
                self._note(name, sent, waits=())
            raise
        self._note(name, sent)
        for file, (size, _) in sent.items():
            if self.remote[name].get(file, (-1, 0))[0] != size:
                raise UserError(
                    "a file did not arrive whole",
                    where=f"{self}/{name}/{file}",
                    remedy="run the same command again",
                )

    def _note(self, name: str, sent: Mapping[str, Stamp], waits: Sequence[float] | None = None) -> None:
        """Note what the store holds after an upload; copies of what others have changed there go."""
        there = self._list(name, waits=waits)
        state = _State.load(self._state(name))
        same = {f for f, stamp in there.items() if f in sent or state.remote.get(f) == stamp}
        for file in self._ours(name):
            if file in there and file not in same:
                (self.root / name / file).unlink()
        local = {f: s for f, s in {**state.local, **sent}.items() if f in same}
        _State(there, local).save(self._state(name))
        self.remote[name] = there


class _Background:
    """Uploads of one trial's folder beside its work, one at a time."""

    def __init__(self, mirror: Mirror, name: str) -> None:
        self.mirror, self.name = mirror, name
        self.staged = mirror.place / "staged" / name
        self.pool = ThreadPoolExecutor(1)
        self.sending: Future[None] | None = None

    def save(self) -> None:
        """Upload what has changed; nothing while the last upload is under way, the next one will do."""
        if self.sending is not None and not self.sending.done():
            return
        self._report()
        files, source = self.mirror._changed(self.name)
        if not files:
            return
        for file in files:
            target = self.staged / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            _snapshot(source / file, target)
        self.sending = self.pool.submit(self._send, files)

    def _send(self, files: Mapping[str, Stamp]) -> None:
        try:
            self.mirror._send(self.name, files, self.staged)
        finally:
            shutil.rmtree(self.staged, ignore_errors=True)

    def _report(self) -> None:
        if self.sending is not None and (error := self.sending.exception()) is not None:
            say(f"warning: an upload failed, the next one makes up for it: {error}")
        self.sending = None

    def wait(self) -> None:
        """Until nothing is under way."""
        self._report()
        self.pool.shutdown()


def _snapshot(source: Path, target: Path) -> None:
    """The content of a file as it is now: linked where such files are only ever replaced as a whole."""
    if source.suffix in _WHOLE:
        with suppress(OSError, NotImplementedError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


#: Mirrors of this process by the folder of their records.
_MIRRORS: dict[Path, Mirror] = {}


@cache
def mirror_of(uri: str, cache_root: Path) -> Mirror:
    """The mirror of a store below a cache folder, one object per process."""
    uri = uri.rstrip("/")
    mirror = Mirror(uri, cache_root.absolute() / "stores" / digest(uri))
    _MIRRORS[mirror.root] = mirror
    return mirror


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError instead of raising it: for transfers that others can make up for."""
    try:
        yield
    except UserError as error:
        say(f"warning: {error}")


def present(path: Path) -> bool:
    """Whether a file of a record is there; one that only the store holds is brought first."""
    for root, mirror in _MIRRORS.items():
        if path.is_relative_to(root):
            mirror.fetch(path)
    return path.exists()
