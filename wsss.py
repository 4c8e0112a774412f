"""The public interface: everything that is meant to be imported, under one name.

``import wsss`` is cheap: a name brings its module when it is first used. What is not here is private and may
move from one version to the next; docs/python.md shows the use of these names and says how they may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wsss_bench  # our packages are found first, whatever lies where the user stands

if TYPE_CHECKING:
    from harness import __version__ as __version__
    from harness.batch import Batch as Batch
    from harness.batch import Progress as Progress
    from harness.batch import View as View
    from harness.build import Build as Build
    from harness.build import ViewSpec as ViewSpec
    from harness.data.base import IGNORE as IGNORE
    from harness.data.base import UNLABELLED as UNLABELLED
    from harness.data.base import Dataset as Dataset
    from harness.data.base import DatasetInfo as DatasetInfo
    from harness.data.predictions import folder_pairs as folder_pairs
    from harness.data.roots import open_dataset as open_dataset
    from harness.deployment import export_model as export_model
    from harness.errors import UserError as UserError
    from harness.evaluation import gather as gather
    from harness.evaluation import label_map as label_map
    from harness.evaluation import summarise as summarise
    from harness.export import export as export
    from harness.finite import require_finite as require_finite
    from harness.jobs.job import Resources as Resources
    from harness.networks import load_network as load_network
    from harness.nn.decoders import DeepLabV3Plus as DeepLabV3Plus
    from harness.nn.ema import ema_copy as ema_copy
    from harness.nn.ema import ema_update as ema_update
    from harness.nn.encoders import create_encoder as create_encoder
    from harness.nn.precision import outside_autocast as outside_autocast
    from harness.nn.resize import resize as resize
    from harness.nn.vit import create_vit as create_vit
    from harness.prediction import predict as predict
    from harness.protocols import protocol as protocol
    from harness.recipes import Resolved as Resolved
    from harness.recipes import all_recipes as all_recipes
    from harness.recipes import recipe_names as recipe_names
    from harness.recipes import resolve as resolve
    from harness.runs.execution import execute as execute
    from harness.runs.execution import plan as plan
    from harness.runs.execution import run_recipes as run  # noqa: F401
    from harness.runs.trial import Options as Options
    from harness.runs.trial import Outcome as Outcome
    from harness.runs.trial import Trial as Trial
    from harness.schema import InferenceOnly as InferenceOnly
    from harness.schema import Neutral as Neutral
    from harness.schema import Shapes as Shapes
    from harness.schema import TrainingOnly as TrainingOnly
    from harness.schema import schema as schema
    from harness.scoring import evaluate as evaluate
    from harness.scoring import score_predictions as score_predictions
    from harness.search.searching import search as search
    from harness.store.counts import PerImage as PerImage
    from harness.store.records import EvaluationRecord as EvaluationRecord
    from harness.store.records import Record as Record
    from harness.store.records import Store as Store
    from leaderboards.frames import class_table as class_table
    from leaderboards.frames import table as table
    from leaderboards.report import write_claims as write_claims
    from leaderboards.report import write_leaderboard as write_leaderboard
    from leaderboards.report import write_report as write_report
    from methods.base import Method as Method
    from methods.base import NoConfig as NoConfig
    from methods.base import Paper as Paper
    from methods.parts.cam import cam_to_label as cam_to_label
    from methods.parts.cam import multi_scale_cam as multi_scale_cam
    from methods.parts.cross_entropy import partial_cross_entropy as partial_cross_entropy
    from methods.parts.deeplab import DeepLabConfig as DeepLabConfig
    from methods.parts.deeplab import DeepLabMethod as DeepLabMethod
    from methods.parts.transformer import ViTConfig as ViTConfig
    from methods.parts.transformer import ViTSegmenter as ViTSegmenter

#: Where each name comes from: the module, and its name there if it is another.
_PLACES = {
    "harness": ("__version__",),
    "harness.batch": ("Batch", "Progress", "View"),
    "harness.build": ("Build", "ViewSpec"),
    "harness.jobs.job": ("Resources",),
    "harness.data.base": ("IGNORE", "UNLABELLED", "Dataset", "DatasetInfo"),
    "harness.data.predictions": ("folder_pairs",),
    "harness.data.roots": ("open_dataset",),
    "harness.deployment": ("export_model",),
    "harness.errors": ("UserError",),
    "harness.evaluation": ("gather", "label_map", "summarise"),
    "harness.export": ("export",),
    "harness.finite": ("require_finite",),
    "harness.networks": ("load_network",),
    "methods.parts.cam": ("cam_to_label", "multi_scale_cam"),
    "harness.nn.decoders": ("DeepLabV3Plus",),
    "harness.nn.ema": ("ema_copy", "ema_update"),
    "harness.nn.encoders": ("create_encoder",),
    "harness.nn.precision": ("outside_autocast",),
    "harness.nn.resize": ("resize",),
    "harness.nn.vit": ("create_vit",),
    "harness.prediction": ("predict",),
    "harness.protocols": ("protocol",),
    "harness.recipes": ("Resolved", "all_recipes", "recipe_names", "resolve"),
    "harness.runs.execution": ("execute", "plan", "run=run_recipes"),
    "harness.runs.trial": ("Options", "Outcome", "Trial"),
    "harness.schema": ("InferenceOnly", "Neutral", "Shapes", "TrainingOnly", "schema"),
    "harness.scoring": ("evaluate", "score_predictions"),
    "harness.search.searching": ("search",),
    "harness.store.counts": ("PerImage",),
    "harness.store.records": ("EvaluationRecord", "Record", "Store"),
    "leaderboards.frames": ("class_table", "table"),
    "leaderboards.report": ("write_claims", "write_leaderboard", "write_report"),
    "methods.base": ("Method", "NoConfig", "Paper"),
    "methods.parts.cross_entropy": ("partial_cross_entropy",),
    "methods.parts.deeplab": ("DeepLabConfig", "DeepLabMethod"),
    "methods.parts.transformer": ("ViTConfig", "ViTSegmenter"),
}
_MODULES = {
    own: (module, theirs or own)
    for module, names in _PLACES.items()
    for own, _, theirs in (name.partition("=") for name in names)
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"wsss has no {name!r}; docs/python.md lists what it has")
    module, theirs = _MODULES[name]
    value = getattr(importlib.import_module(module), theirs)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


if __name__ == "__main__":  # python -m wsss
    wsss_bench.main()
