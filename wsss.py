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
    from harness.basics.errors import UserError as UserError
    from harness.basics.finite import require_finite as require_finite
    from harness.basics.schema import InferenceOnly as InferenceOnly
    from harness.basics.schema import Neutral as Neutral
    from harness.basics.schema import Shapes as Shapes
    from harness.basics.schema import TrainingOnly as TrainingOnly
    from harness.basics.schema import schema as schema
    from harness.data.base import IGNORE as IGNORE
    from harness.data.base import UNLABELLED as UNLABELLED
    from harness.data.base import Dataset as Dataset
    from harness.data.base import DatasetInfo as DatasetInfo
    from harness.data.predictions import folder_pairs as folder_pairs
    from harness.data.sets.layout import FileDataset as FileDataset
    from harness.data.sets.roots import open_dataset as open_dataset
    from harness.engine.batch import Batch as Batch
    from harness.engine.batch import Progress as Progress
    from harness.engine.batch import View as View
    from harness.engine.build import Build as Build
    from harness.engine.build import FurtherSpec as FurtherSpec
    from harness.engine.build import ViewSpec as ViewSpec
    from harness.engine.distributed import of_all_processes as of_all_processes
    from harness.engine.method import Method as Method
    from harness.engine.method import register_method as register_method
    from harness.engine.networks import load_network as load_network
    from harness.engine.sampling import Pool as Pool
    from harness.evaluation.evaluator import gather as gather
    from harness.evaluation.evaluator import label_map as label_map
    from harness.evaluation.evaluator import summarise as summarise
    from harness.nn.decoders import DeepLabV3Plus as DeepLabV3Plus
    from harness.nn.ema import ema_copy as ema_copy
    from harness.nn.ema import ema_update as ema_update
    from harness.nn.encoders import create_encoder as create_encoder
    from harness.nn.frozen import Frozen as Frozen
    from harness.nn.precision import outside_autocast as outside_autocast
    from harness.nn.resize import resize as resize
    from harness.nn.vit import create_vit as create_vit
    from harness.recipes.declared import Declaration as Declaration
    from harness.recipes.declared import NoConfig as NoConfig
    from harness.recipes.declared import Paper as Paper
    from harness.recipes.protocols import protocol as protocol
    from harness.recipes.resolving import Resolved as Resolved
    from harness.recipes.resolving import all_recipes as all_recipes
    from harness.recipes.resolving import recipe_names as recipe_names
    from harness.recipes.resolving import resolve as resolve
    from harness.recipes.specs import AugmentSpec as AugmentSpec
    from harness.records.counts import PerImage as PerImage
    from harness.records.records import EvaluationRecord as EvaluationRecord
    from harness.records.records import Record as Record
    from harness.records.records import Store as Store
    from harness.running.inference.curves import threshold_curve as threshold_curve
    from harness.running.inference.deployment import export_model as export_model
    from harness.running.inference.export import export as export
    from harness.running.inference.prediction import predict as predict
    from harness.running.inference.scoring import evaluate as evaluate
    from harness.running.inference.scoring import score_predictions as score_predictions
    from harness.running.inference.segmenter import Segmenter as Segmenter
    from harness.running.jobs.job import Resources as Resources
    from harness.running.search.searching import search as search
    from harness.running.search.tuning import tune as tune
    from harness.running.trials.display import Outcome as Outcome
    from harness.running.trials.execution import execute as execute
    from harness.running.trials.execution import plan as plan
    from harness.running.trials.execution import run_recipes as run  # noqa: F401
    from harness.running.trials.trial import Options as Options
    from harness.running.trials.trial import Trial as Trial
    from leaderboards.judge.checking import check_package as check_package
    from leaderboards.plots.plotting import Plot as Plot
    from leaderboards.rows.frames import class_table as class_table
    from leaderboards.rows.frames import record_table as record_table
    from leaderboards.rows.frames import table as table
    from leaderboards.rows.metrics import ClassCounts as ClassCounts
    from leaderboards.rows.metrics import Metric as Metric
    from leaderboards.rows.sharing import check_bundle as check_bundle
    from leaderboards.rows.sharing import merge as merge
    from leaderboards.rows.sharing import pack as pack
    from leaderboards.write.report import write_claims as write_claims
    from leaderboards.write.report import write_leaderboard as write_leaderboard
    from leaderboards.write.report import write_report as write_report
    from methods.parts.cam import cam_to_label as cam_to_label
    from methods.parts.cam import multi_scale_cam as multi_scale_cam
    from methods.parts.configs import DeepLabConfig as DeepLabConfig
    from methods.parts.configs import ViTConfig as ViTConfig
    from methods.parts.cross_entropy import partial_cross_entropy as partial_cross_entropy
    from methods.parts.deeplab import DeepLabMethod as DeepLabMethod
    from methods.parts.transformer import ViTSegmenter as ViTSegmenter

#: Where each name comes from: the module, and its name there if it is another.
_PLACES = {
    "harness": ("__version__",),
    "harness.engine.batch": ("Batch", "Progress", "View"),
    "harness.engine.build": ("Build", "FurtherSpec", "ViewSpec"),
    "harness.engine.sampling": ("Pool",),
    "harness.running.jobs.job": ("Resources",),
    "harness.data.base": ("IGNORE", "UNLABELLED", "Dataset", "DatasetInfo"),
    "harness.data.predictions": ("folder_pairs",),
    "harness.data.sets.layout": ("FileDataset",),
    "harness.data.sets.roots": ("open_dataset",),
    "harness.running.inference.deployment": ("export_model",),
    "harness.basics.errors": ("UserError",),
    "harness.evaluation.evaluator": ("gather", "label_map", "summarise"),
    "harness.running.inference.export": ("export",),
    "harness.basics.finite": ("require_finite",),
    "harness.engine.networks": ("load_network",),
    "methods.parts.cam": ("cam_to_label", "multi_scale_cam"),
    "harness.nn.decoders": ("DeepLabV3Plus",),
    "harness.nn.ema": ("ema_copy", "ema_update"),
    "harness.nn.encoders": ("create_encoder",),
    "harness.nn.frozen": ("Frozen",),
    "harness.nn.precision": ("outside_autocast",),
    "harness.nn.resize": ("resize",),
    "harness.nn.vit": ("create_vit",),
    "harness.running.inference.prediction": ("predict",),
    "harness.recipes.protocols": ("protocol",),
    "harness.recipes.resolving": ("Resolved", "all_recipes", "recipe_names", "resolve"),
    "harness.running.trials.execution": ("execute", "plan", "run=run_recipes"),
    "harness.running.trials.display": ("Outcome",),
    "harness.running.trials.trial": ("Options", "Trial"),
    "harness.basics.schema": ("InferenceOnly", "Neutral", "Shapes", "TrainingOnly", "schema"),
    "harness.running.inference.segmenter": ("Segmenter",),
    "harness.running.inference.scoring": ("evaluate", "score_predictions"),
    "harness.running.search.searching": ("search",),
    "harness.running.search.tuning": ("tune",),
    "harness.running.inference.curves": ("threshold_curve",),
    "leaderboards.rows.sharing": ("check_bundle", "merge", "pack"),
    "harness.recipes.specs": ("AugmentSpec",),
    "harness.records.counts": ("PerImage",),
    "harness.records.records": ("EvaluationRecord", "Record", "Store"),
    "leaderboards.judge.checking": ("check_package",),
    "leaderboards.plots.plotting": ("Plot",),
    "leaderboards.rows.frames": ("class_table", "record_table", "table"),
    "leaderboards.rows.metrics": ("ClassCounts", "Metric"),
    "leaderboards.write.report": ("write_claims", "write_leaderboard", "write_report"),
    "harness.engine.distributed": ("of_all_processes",),
    "harness.engine.method": ("Method", "register_method"),
    "harness.recipes.declared": ("Declaration", "NoConfig", "Paper"),
    "methods.parts.configs": ("DeepLabConfig", "ViTConfig"),
    "methods.parts.cross_entropy": ("partial_cross_entropy",),
    "methods.parts.deeplab": ("DeepLabMethod",),
    "methods.parts.transformer": ("ViTSegmenter",),
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
