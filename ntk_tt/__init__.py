"""ntk-tt: how long fine-tuning will take, before you start it."""

from importlib.metadata import PackageNotFoundError, version

import jax

from ntk_tt.adapters import from_equinox, from_function, from_linen, load_factory
from ntk_tt.calibration import slowdown, slowed
from ntk_tt.closed_loop import Forecast, Predictor, loss_callback
from ntk_tt.data import Task, UpTo, describe_data, list_data, load_task, task_from_arrays
from ntk_tt.dynamics import LinearizedProblem, Trajectory, simulate
from ntk_tt.features import jacobian_features, write_features
from ntk_tt.finetune import TrainingRun, finetune
from ntk_tt.head import HeadProblem, linearize_head
from ntk_tt.jaxpr import warn_if_untested
from ntk_tt.models import Model, fit_linear_head, from_nnx, list_models, load_model
from ntk_tt.ntk import empirical_ntk, ntk_from_features
from ntk_tt.one_shot import OneShot, predict_after
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.predict import Prediction, linearize, predict, stored_outputs
from ntk_tt.sharding import sample_mesh
from ntk_tt.spectrum import Spectrum, extrapolate_loss, extrapolate_power_law, extrapolate_resolvent, fit_power_law, measure_alpha, ntk_spectrum
from ntk_tt.store import FeatureStore
from ntk_tt.trainable import LoRA, restrict
from ntk_tt.training_time import training_times
from ntk_tt.verdict import Verdict, assess, judge, linearization_residual, stability

try:
    __version__ = version("ntk-tt")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

warn_if_untested(jax.__version__)

__all__ = [
    "FeatureStore", "Forecast", "HeadProblem", "LinearizedProblem", "LoRA", "Model", "OneShot", "OptimizerConfig", "Prediction", "Predictor",
    "Spectrum", "Task", "TrainingRun", "Trajectory", "UpTo", "Verdict", "assess", "describe_data", "empirical_ntk", "extrapolate_loss",
    "extrapolate_power_law", "extrapolate_resolvent", "finetune", "fit_linear_head", "fit_power_law", "from_equinox", "from_function", "from_linen",
    "from_nnx", "jacobian_features", "judge", "linearization_residual", "linearize", "linearize_head", "list_data", "list_models", "load_factory",
    "load_model", "load_task", "loss_callback", "measure_alpha", "ntk_from_features", "ntk_spectrum", "predict", "predict_after", "restrict",
    "sample_mesh", "simulate", "slowdown", "slowed", "stability", "stored_outputs", "task_from_arrays", "training_times", "write_features",
]
