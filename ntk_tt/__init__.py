"""ntk-tt: how long fine-tuning will take, before you start it."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from ntk_tt.data import Task, UpTo, describe_data, list_data, load_task, task_from_arrays
from ntk_tt.dynamics import Trajectory, simulate
from ntk_tt.features.compute import jacobian_features
from ntk_tt.features.contrasts import stored_outputs
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.store import FeatureStore
from ntk_tt.features.write import write_features
from ntk_tt.former_names import find_former_modules, renamed
from ntk_tt.jacobian.jaxpr import warn_if_untested
from ntk_tt.kernels.empirical import empirical_ntk, ntk_from_features
from ntk_tt.kernels.spectrum import Spectrum, fit_power_law, ntk_spectrum
from ntk_tt.models import Model, fit_linear_head, from_nnx, list_models, load_model
from ntk_tt.models.adapters import from_function
from ntk_tt.models.equinox_adapter import from_equinox
from ntk_tt.models.factory import load_factory
from ntk_tt.models.linen_adapter import from_linen
from ntk_tt.models.lora import LoRA
from ntk_tt.models.trainable import restrict
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.assessment import assess
from ntk_tt.prediction.margin import stability
from ntk_tt.prediction.one_setting import Prediction, predict
from ntk_tt.prediction.one_shot import OneShot, predict_after
from ntk_tt.prediction.residual import linearization_residual
from ntk_tt.prediction.verdict import Verdict, judge
from ntk_tt.report.training_time import (
    Prepared,
    TrainingTimeReport,
    predict_training_time,
    prepare,
)
from ntk_tt.runtime.sharding import sample_mesh
from ntk_tt.scaling import (
    extrapolate_loss,
    extrapolate_power_law,
    extrapolate_resolvent,
    measure_alpha,
)
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.linear_pass import linearize
from ntk_tt.surrogate.small_network import SmallNetwork
from ntk_tt.times.calibration import slowdown, slowed
from ntk_tt.times.crossing import training_times
from ntk_tt.times.levels import Level
from ntk_tt.times.online import Forecast, Predictor, loss_callback
from ntk_tt.training import TrainingRun, finetune

try:
    __version__ = version("ntk-tt")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

warn_if_untested(jax.__version__)
find_former_modules()


def __getattr__(name: str) -> Any:
    return renamed(name)


__all__ = [
    "FeatureOptions",
    "FeatureStore",
    "Forecast",
    "Level",
    "LinearizedProblem",
    "LoRA",
    "Model",
    "OneShot",
    "OptimizerConfig",
    "Prediction",
    "Predictor",
    "Prepared",
    "SmallNetwork",
    "Spectrum",
    "Task",
    "TrainingRun",
    "TrainingTimeReport",
    "Trajectory",
    "UpTo",
    "Verdict",
    "assess",
    "describe_data",
    "empirical_ntk",
    "expand",
    "extrapolate_loss",
    "extrapolate_power_law",
    "extrapolate_resolvent",
    "finetune",
    "fit_linear_head",
    "fit_power_law",
    "from_equinox",
    "from_function",
    "from_linen",
    "from_nnx",
    "jacobian_features",
    "judge",
    "linearization_residual",
    "linearize",
    "list_data",
    "list_models",
    "load_factory",
    "load_model",
    "load_task",
    "loss_callback",
    "measure_alpha",
    "ntk_from_features",
    "ntk_spectrum",
    "predict",
    "predict_after",
    "predict_training_time",
    "prepare",
    "restrict",
    "sample_mesh",
    "simulate",
    "slowdown",
    "slowed",
    "stability",
    "stored_outputs",
    "task_from_arrays",
    "training_times",
    "write_features",
]
