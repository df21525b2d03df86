"""The zoo on one screen: every part there is, as kind -> 'module:Class'. A new part is one file and one line here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from pydantic_core import PydanticCustomError

from trainer.errors import one_of

CATALOG: dict[str, dict[str, str]] = {
    "dataset": {
        "digits": "trainer.datasets.digits:Digits",
        "digit_scenes": "trainer.datasets.digit_scenes:DigitScenes",
        "mnist": "trainer.datasets.mnist:Mnist",
        "reviews": "trainer.datasets.reviews:Reviews",
        "captioned_digits": "trainer.datasets.captioned_digits:CaptionedDigits",
        "parquet": "trainer.datasets.parquet:Parquet",
        "csv": "trainer.datasets.csv:Csv",
        "jsonl": "trainer.datasets.jsonl:Jsonl",
        "python": "trainer.datasets.python:PythonDataset",
    },
    "column": {
        "boxes": "trainer.columns.boxes:Boxes",
        "category": "trainer.columns.category:Category",
        "image": "trainer.columns.image:Image",
        "number": "trainer.columns.number:Number",
        "text": "trainer.columns.text:Text",
        "vector": "trainer.columns.vector:Vector",
    },
    "model": {
        "mlp": "trainer.models.mlp:Mlp",
        "conv": "trainer.models.conv:Conv",
        "conv_map": "trainer.models.conv_map:ConvMap",
        "conv_generator": "trainer.models.conv_generator:ConvGenerator",
        "conv_critic": "trainer.models.conv_critic:ConvCritic",
        "text_transformer": "trainer.models.text_transformer:TextTransformer",
        "python": "trainer.models.python:PythonModel",
    },
    "objective": {
        "cross_entropy": "trainer.objectives.cross_entropy:CrossEntropy",
        "mse": "trainer.objectives.mse:MeanSquaredError",
        "l1": "trainer.objectives.l1:MeanAbsoluteError",
        "detection": "trainer.objectives.detection:Detection",
        "mutual_kl": "trainer.objectives.mutual_kl:MutualKl",
        "cross_teach": "trainer.objectives.cross_teach:CrossTeach",
        "distill": "trainer.objectives.distill:Distill",
        "ensemble": "trainer.objectives.ensemble:Ensemble",
        "info_nce": "trainer.objectives.info_nce:InfoNce",
        "fused": "trainer.objectives.fused:Fused",
        "caption": "trainer.objectives.caption:Caption",
        "gan_spot": "trainer.objectives.gan_spot:GanSpot",
        "gan_fool": "trainer.objectives.gan_fool:GanFool",
    },
    "optimizer": {
        "adamw": "trainer.optimizers.adamw:AdamW",
        "sgd": "trainer.optimizers.sgd:Sgd",
    },
    "balancer": {
        "equal": "trainer.balancers.equal:Equal",
        "static": "trainer.balancers.static:Static",
        "uncertainty": "trainer.balancers.uncertainty:Uncertainty",
        "random": "trainer.balancers.random:Random",
        "dwa": "trainer.balancers.dwa:Dwa",
        "geometric_mean": "trainer.balancers.geometric_mean:GeometricMean",
        "smooth_tchebycheff": "trainer.balancers.smooth_tchebycheff:SmoothTchebycheff",
        "famo": "trainer.balancers.famo:Famo",
        "gradnorm": "trainer.balancers.gradnorm:GradNorm",
        "pcgrad": "trainer.balancers.pcgrad:PcGrad",
        "gradvac": "trainer.balancers.gradvac:GradVac",
        "cagrad": "trainer.balancers.cagrad:CaGrad",
        "mgda": "trainer.balancers.mgda:Mgda",
        "nash_mtl": "trainer.balancers.nash_mtl:NashMtl",
        "imtl_g": "trainer.balancers.imtl_g:ImtlG",
        "aligned_mtl": "trainer.balancers.aligned_mtl:AlignedMtl",
        "upgrad": "trainer.balancers.upgrad:UpGrad",
        "fairgrad": "trainer.balancers.fairgrad:FairGrad",
        "config": "trainer.balancers.config:ConFig",
        "grad_drop": "trainer.balancers.grad_drop:GradDrop",
    },
    "mixer": {
        "all": "trainer.mixers.all:All",
        "proportional": "trainer.mixers.proportional:Proportional",
        "temperature": "trainer.mixers.temperature:Temperature",
        "round_robin": "trainer.mixers.round_robin:RoundRobin",
    },
    "metric": {
        "accuracy": "trainer.metrics.accuracy:Accuracy",
        "balanced_accuracy": "trainer.metrics.balanced_accuracy:BalancedAccuracy",
        "f1_macro": "trainer.metrics.f1_macro:F1Macro",
        "auroc": "trainer.metrics.auroc:Auroc",
        "log_loss": "trainer.metrics.log_loss:LogLoss",
        "calibration_error": "trainer.metrics.calibration_error:CalibrationError",
        "r2": "trainer.metrics.r2:R2",
        "mae": "trainer.metrics.mae:MeanAbsoluteError",
        "rmse": "trainer.metrics.rmse:RootMeanSquaredError",
        "spearman": "trainer.metrics.spearman:Spearman",
        "map": "trainer.metrics.mean_average_precision:MeanAveragePrecision",
        "map_50": "trainer.metrics.mean_average_precision:MeanAveragePrecision50",
        "exact_match": "trainer.metrics.exact_match:ExactMatch",
        "token_accuracy": "trainer.metrics.token_accuracy:TokenAccuracy",
        "recall_left_to_right": "trainer.metrics.recall_left_to_right:RecallLeftToRight",
        "recall_right_to_left": "trainer.metrics.recall_right_to_left:RecallRightToLeft",
        "frechet": "trainer.metrics.frechet:Frechet",
        "manifold_precision": "trainer.metrics.manifold_precision:ManifoldPrecision",
        "manifold_recall": "trainer.metrics.manifold_recall:ManifoldRecall",
    },
    "sync": {
        "ema": "trainer.syncs.ema:Ema",
    },
    "store": {
        "file": "trainer.stores.file:FileStore",
        "s3": "trainer.stores.s3:S3Store",
    },
}


def load(reference: str) -> Any:
    """The object behind 'package.module:name', also of a module in the current folder."""
    module, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:  # an installed command does not have it there
        sys.path.append(os.getcwd())
    return getattr(importlib.import_module(module), name)


def find(family: str, kind: str) -> Any:
    """The class behind a kind of a family. Raises KeyError where there is none."""
    return load(CATALOG[family][kind])


def parser(family: str) -> Callable[[Any], Any]:
    """A pydantic validator that turns `kind`, `{kind: ..., ...}` or a part into the part."""

    def parse(value: Any) -> Any:
        known = CATALOG[family]
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            if type(value).__module__.startswith("trainer."):
                return value
            raise PydanticCustomError("part_type", "expected the name of a {family} or a mapping with 'kind'", {"family": family})
        kind = value.get("kind")
        if kind is None:
            raise PydanticCustomError("part_kind_missing", "says no 'kind'", {"family": family, "remedy": one_of("", known)})
        if isinstance(kind, str) and ":" in kind and "python" in known:
            return find(family, "python").model_validate(value)
        if not isinstance(kind, str) or kind not in known or kind == "python":
            names = [name for name in known if name != "python"]
            remedy = one_of(kind, names) + (", or 'package.module:function'" if "python" in known else "")
            said = {"family": family, "kind": repr(kind), "remedy": remedy}
            raise PydanticCustomError("part_unknown", "no {family} is called {kind}", said)
        return find(family, kind).model_validate(value)

    return parse
