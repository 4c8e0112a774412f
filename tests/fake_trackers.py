"""What TensorBoard, Weights & Biases and MLflow would show of a run."""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType, SimpleNamespace

from tensorboardX.proto import event_pb2


def events_of(file: Path):
    """The records of an event file: length, its checksum, the message, its checksum."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length


def tensorboard_points(root: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars by tag as TensorBoard shows them: a start voids what is at its step or later."""
    points: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((root / "tensorboard").rglob("events.*")):
        for event in events_of(file):
            if event.session_log.status == event_pb2.SessionLog.START:
                points = {k: [p for p in v if p[0] < event.step] for k, v in points.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    points.setdefault(value.tag, []).append((event.step, value.simple_value))
                if value.HasField("image"):
                    points.setdefault(value.tag, []).append((event.step, value.image.height))
    return points


class FakeWandB(ModuleType):
    """A service that keeps runs, and refuses steps that it has."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, SimpleNamespace] = {}
        self.begun: list[dict] = []
        self.broken, self.offline, self.losing = False, False, False
        self.Settings, self.Image = dict, Path  # a picture is its file

    def login(self, prompt: bool) -> bool:
        assert prompt is False, "nobody is there to answer"
        return True

    def init(self, **given):
        assert given["resume"] == "allow"
        self.begun.append(given)
        new = SimpleNamespace(points={}, last=-1, summary={}, exit_code=None)
        if self.offline:
            self.runs.pop(given["id"], None)  # the newest folder counts
        kept = self.runs.setdefault(given["id"], new)

        def log(values, step):
            if self.broken:
                raise ConnectionError("no network\nat all")
            if step >= kept.last and not self.losing:
                kept.last = step
                for name, value in values.items():
                    kept.points.setdefault(name, []).append((step, value))

        return SimpleNamespace(
            step=kept.last + 1,
            log=log,
            summary=kept.summary,
            finish=lambda exit_code: setattr(kept, "exit_code", exit_code),
        )


class FakeMLflow(ModuleType):
    """A server that keeps every metric that it is given."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, SimpleNamespace] = {}
        self.experiments: dict[str, str] = {}
        self.uris: set[str] = set()
        self.broken = False
        entities = ModuleType("mlflow.entities")
        entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)
        entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)
        self.entities, self.MlflowClient = entities, lambda tracking_uri: self._client(tracking_uri)

    def _client(self, uri):
        self.uris.add(uri)
        server = self

        class Client:
            def get_experiment_by_name(self, name):
                found = server.experiments.get(name)
                return None if found is None else SimpleNamespace(experiment_id=found)

            def create_experiment(self, name):
                return server.experiments.setdefault(name, str(len(server.experiments)))

            def create_run(self, experiment_id, run_name, tags):
                name = f"run{len(server.runs)}"
                server.runs[name] = SimpleNamespace(points={}, params={}, status="RUNNING", name=run_name)
                return SimpleNamespace(info=SimpleNamespace(run_id=name))

            def log_batch(self, run_id, metrics=(), params=()):
                if server.broken:
                    raise ConnectionError("no network\nat all")
                assert len(metrics) <= 1000
                assert len(params) <= 100
                for m in metrics:
                    server.runs[run_id].points.setdefault(m.key, []).append((m.step, m.value))
                server.runs[run_id].params |= {p.key: p.value for p in params}

            def log_artifact(self, run_id, path, artifact_path):
                step = int(Path(path).stem.rpartition("-")[2])
                name = f"{artifact_path}/{Path(path).stem.rpartition('-')[0]}"
                server.runs[run_id].points.setdefault(name, []).append((step, Path(path)))

            def get_run(self, run_id):
                latest = {k: v[-1][1] for k, v in server.runs[run_id].points.items()}
                return SimpleNamespace(data=SimpleNamespace(metrics=latest))

            def get_metric_history(self, run_id, key):
                return [SimpleNamespace(step=s, value=v) for s, v in server.runs[run_id].points[key]]

            def update_run(self, run_id, status):
                server.runs[run_id].status = status

            def set_terminated(self, run_id, status):
                server.runs[run_id].status = status

        return Client()
