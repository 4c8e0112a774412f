"""Runs as TensorBoard, Weights & Biases or MLflow show them. Nothing here changes a number.

They are given copies of what a run keeps on disk (:mod:`harness.running.watching.following`).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.basics.errors import UserError
from harness.data.images import read_rgb
from harness.engine.faults import first_line

#: Project or experiment under which runs are filed, unless the package's own variable names another.
PROJECT = "wsss-bench"

#: A step and what was measured there.
Point = tuple[int, dict[str, float]]
#: PNG files by step and name.
ShownPictures = Mapping[int, Mapping[str, Path]]
_NONE: ShownPictures = {}


@dataclass(frozen=True)
class Subject:
    """A run as trackers see it.

    Attributes:
        path: where it belongs, as in ``agmm/mini-scribble/<digest>/seed-0``; its name.
        group: runs of one group are compared, as the seeds of a recipe are.
        folder: what the run keeps on disk; the trackers' state is added to it.
        root: folder for trackers that keep files.
        values: hyper-parameters and provenance, nested.
        metrics: names of the scores by which runs are compared.
    """

    path: str
    group: str
    folder: Path
    root: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()


class Tracker(ABC):
    """Takes the points of one run to one place.

    Args:
        subject: the run.
        state: what was kept of an earlier start: ``step``, the last one delivered, and what :meth:`open`
            put there.
    """

    def __init__(self, subject: Subject, state: dict[str, Any]) -> None:
        self.subject, self.state = subject, state

    @property
    def delivered(self) -> int:
        """The last step that an earlier start delivered, -1 where there is none."""
        return int(self.state.get("step", -1))

    @abstractmethod
    def open(self, first: int) -> int:
        """Begin, or go on.

        Args:
            first: the first step of this start; later points of an earlier one are void.

        Returns:
            Points up to this step are there and are not given again.
        """

    @abstractmethod
    def rows(self, points: Sequence[Point], pictures: ShownPictures = _NONE) -> None:
        """Points of the training curve, in order, with the pictures of their steps."""

    @abstractmethod
    def scores(self, points: Sequence[Point]) -> None:
        """Evaluations; all of the run's are given at each start, and each new one once."""

    @abstractmethod
    def close(self, status: str) -> None:
        """The run is ``finished``, ``failed`` or ``stopped``."""


class TensorBoard(Tracker):
    """Event files below ``tensorboard/``; ``tensorboard --logdir tensorboard`` shows them.

    Written without tensorboardX's ``SummaryWriter``: its thread dies silently when a disk is full, and
    whoever writes on then waits for it forever.
    """

    def open(self, first: int) -> int:
        """Void what follows the last delivery, and that delivery's own step, which is given again."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import hparams, text

        place = self.subject.root / "tensorboard" / self.subject.path
        place.mkdir(parents=True, exist_ok=True)
        fresh = self.delivered < 0
        self.purged = 0 if fresh else min(self.delivered, first)
        if fresh:  # what is there belongs to a run whose folder was deleted, or that had not come far
            for old in place.glob("events.out.tfevents.*"):
                old.unlink()
        # A name of its own for each start: the writer's own has whole seconds, and overwrites.
        self.file = EventsWriter(str(place / "events"), f".{time.time_ns()}")
        if not fresh:
            start = SessionLog(status=SessionLog.START)
            self.file.write_event(Event(wall_time=time.time(), step=self.purged, session_log=start))
        experiment, session, self.last = hparams(
            flat(self.subject.values), dict.fromkeys(self.subject.metrics, 0.0)
        )
        if fresh:
            shown = json.dumps(self.subject.values, indent=1, default=str)
            for summary in (experiment, session, text("configuration", f"```\n{shown}\n```")):
                self._write(summary, 0)
        self.file.flush()
        return self.purged - 1

    def _write(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.file.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def rows(self, points: Sequence[Point], pictures: ShownPictures = _NONE) -> None:
        """As scalars and images."""
        from tensorboardX.summary import image, scalar

        for step, values in points:
            for name, value in values.items():
                self._write(scalar(name, value), step)
            for name, file in pictures.get(step, {}).items():
                self._write(image(f"pictures/{name}", read_rgb(file), dataformats="HWC"), step)
        self.file.flush()

    def scores(self, points: Sequence[Point]) -> None:
        """As scalars; what was not voided is there."""
        self.rows([p for p in points if p[0] >= self.purged])

    def close(self, status: str) -> None:
        """End the file."""
        if status == "finished":
            self._write(self.last, 0)
        self.file.close()


class WandB(Tracker):
    """One run of Weights & Biases; its id is kept, so that it is resumed."""

    def open(self, first: int) -> int:
        """Begin or resume, after the last step that the service has.

        Its own process may have died with rows that it had taken, so the service is asked and not the
        state. Offline there is nobody to ask: each start keeps the whole curve, in a folder of its own.
        """
        import wandb

        self.state.setdefault("id", secrets.token_hex(8))
        given = {} if "WANDB_DIR" in os.environ else {"dir": str(self.subject.root)}
        given |= {} if "WANDB_PROJECT" in os.environ else {"project": PROJECT}
        self.run = wandb.init(
            id=self.state["id"],
            resume="allow",
            name=self.subject.path,
            group=self.subject.group,
            config=dict(self.subject.values),
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off"),
            **given,
        )
        self.picture = wandb.Image
        self.there = int(self.run.step) - 1
        return self.there

    def rows(self, points: Sequence[Point], pictures: ShownPictures = _NONE) -> None:
        """Each as one row of the history."""
        for step, values in points:
            shown = {f"pictures/{name}": self.picture(str(f)) for name, f in pictures.get(step, {}).items()}
            self.run.log({**values, **shown}, step=step)

    def scores(self, points: Sequence[Point]) -> None:
        """As rows too, and as the run's summary, which takes them at any step."""
        self.rows([p for p in points if p[0] > self.there])
        for _, values in points:
            self.run.summary.update(values)

    def close(self, status: str) -> None:
        """End the run, with an exit code."""
        self.run.finish(exit_code={"finished": 0, "failed": 1}.get(status, 255))


class MLflow(Tracker):
    """One run of MLflow; its id is kept, so that it is resumed."""

    def open(self, first: int) -> int:
        """Begin or resume; what an earlier start delivered last is asked for."""
        client = self.client = mlflow_client(self.subject.root)
        if "id" in self.state:
            client.update_run(self.state["id"], status="RUNNING")
            self.known = set(client.get_run(self.state["id"]).data.metrics)
            return max(self.delivered, self._last("train/loss"))
        from mlflow.entities import Param

        run = client.create_run(
            mlflow_experiment(client), run_name=self.subject.path, tags={"group": self.subject.group}
        )
        self.state["id"], self.known = run.info.run_id, set()
        params = [Param(_safe(k), str(v)[:500]) for k, v in flat(self.subject.values).items()]
        for part in _batched(params, 100):
            client.log_batch(run.info.run_id, params=list(part))
        return -1

    def _last(self, name: str) -> int:
        """The last step of a metric when this start began."""
        if _safe(name) not in self.known:
            return -1
        return max(m.step for m in self.client.get_metric_history(self.state["id"], _safe(name)))

    def rows(self, points: Sequence[Point], pictures: ShownPictures = _NONE) -> None:
        """As metrics, at most 1,000 in one request; pictures as artifacts under the names of their files."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(_safe(k), v, now, step) for step, values in points for k, v in values.items()]
        for part in _batched(found, 1000):
            self.client.log_batch(self.state["id"], metrics=list(part))
        for step, _ in points:
            for file in pictures.get(step, {}).values():
                self.client.log_artifact(self.state["id"], str(file), "pictures")

    def scores(self, points: Sequence[Point]) -> None:
        """As metrics; what is there already is left out."""
        self.rows([(s, {k: v for k, v in values.items() if s > self._last(k)}) for s, values in points])

    def close(self, status: str) -> None:
        """End the run."""
        words = {"finished": "FINISHED", "failed": "FAILED"}
        self.client.set_terminated(self.state["id"], words.get(status, "KILLED"))


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


def mlflow_client(root: Path) -> Any:
    """The client of ``$MLFLOW_TRACKING_URI``, else of a database in the folder."""
    # A server that is gone must not hold up training for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.absolute() / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri)


def mlflow_experiment(client: Any) -> str:
    """Id of the experiment that runs are filed under; made where it is not there."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except Exception:  # another trial was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def require(names: Sequence[str], root: Path) -> None:
    """Find what would make trackers fail, before anything runs.

    Args:
        names: of :data:`TRACKERS`.
        root: folder for trackers that keep files.

    Raises:
        UserError: a package is not installed, or does not know who the user is.
    """
    for name in names:
        option = "--tensorboard" if name == "tensorboard" else f"--track {name}"
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise UserError(
                f"{name} is not installed",
                where=option,
                remedy=f"pip install {_PACKAGES[name]}, or leave it out",
            )
        if name == "wandb" and not _wandb_ready():
            raise UserError(
                "wandb has no key to log in with",
                where=option,
                remedy="run `wandb login`, or set WANDB_MODE=offline",
            )
        if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
            try:  # its tables are made here, once, and not by many trials at the same time
                root.mkdir(parents=True, exist_ok=True)
                mlflow_experiment(mlflow_client(root))
            except Exception as error:
                raise UserError(
                    f"mlflow cannot keep its database: {first_line(error)}",
                    where=root / "mlflow.db",
                    remedy="set MLFLOW_TRACKING_URI to a server of yours",
                ) from error


def _wandb_ready() -> bool:
    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return True
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # an older version, which cannot be told not to ask
        return wandb.api.api_key is not None
    except Exception:  # there is a key, and nobody to check it now: the network may come back
        return True


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names; lists, and nothing, as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def _batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _safe(name: str) -> str:
    """A metric's name as MLflow takes it."""
    return re.sub(r"[^\w\-. /]", "_", name)
