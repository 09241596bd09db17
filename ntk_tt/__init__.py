"""ntk-tt: how long fine-tuning will take, before you start it."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from ntk_tt import (  # noqa: F401 - rooms, found by their names
    dynamics,
    features,
    kernels,
    prediction,
    scaling,
    surrogate,
    times,
)
from ntk_tt.data import Task, UpTo, list_data, load_task, task_from_arrays
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.jacobian.jaxpr import warn_if_untested
from ntk_tt.models import Model, from_nnx, list_models, load_model
from ntk_tt.models.adapters import from_function
from ntk_tt.models.equinox_adapter import from_equinox
from ntk_tt.models.linen_adapter import from_linen
from ntk_tt.models.trainable import restrict
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.report.training_time import (
    Prepared,
    TrainingTimeReport,
    predict_training_time,
    prepare,
)
from ntk_tt.runtime.former_names import find_former_modules, renamed
from ntk_tt.times.levels import Level
from ntk_tt.training import TrainingRun, finetune

try:
    __version__ = version("ntk-tt")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

warn_if_untested(jax.__version__)
find_former_modules()


def __getattr__(name: str) -> Any:
    return renamed(name)


# The front door; what lies behind it has the name of its room, such as `ntk_tt.surrogate.expand`.
__all__ = [
    "FeatureOptions",
    "Level",
    "Model",
    "OptimizerConfig",
    "Prepared",
    "Task",
    "TrainingRun",
    "TrainingTimeReport",
    "UpTo",
    "finetune",
    "from_equinox",
    "from_function",
    "from_linen",
    "from_nnx",
    "list_data",
    "list_models",
    "load_model",
    "load_task",
    "predict_training_time",
    "prepare",
    "restrict",
    "task_from_arrays",
]
