"""What was measured elsewhere, added to a store beside whoever else writes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.basics.reading import Damaged
from harness.records.locks import Elsewhere, trial_lock
from harness.records.records import Store
from harness.records.remote import for_readers

#: Seconds to wait for a trial's folder: others who add to it are done by then, a training is not.
_PATIENCE = 10.0


@contextmanager
def adding(store: Store, folder: Path) -> Iterator[None]:
    """Hold a trial's folder to add to it: nobody trains, scores or adds there meanwhile. What the store holds
    of it now is read within the block.

    Raises:
        Damaged: another process works there, and goes on working.
        UserError: the store cannot be read or written to.
    """
    try:
        with trial_lock(folder, _PATIENCE), store.work(folder, for_readers):
            yield
    except Elsewhere as error:
        raise Damaged(
            f"this trial {error}",
            where=store.shown(folder),
            remedy="run the same command again when it is over",
        ) from None
