"""ntk-tt: how long fine-tuning will take, before you start it."""

from importlib.metadata import PackageNotFoundError, version

from ntk_tt.data import Task, load_task
from ntk_tt.dynamics import LinearizedProblem, Trajectory, simulate
from ntk_tt.features import jacobian_features
from ntk_tt.finetune import TrainingRun, finetune
from ntk_tt.models import Model, from_nnx, load_model
from ntk_tt.ntk import empirical_ntk, ntk_from_features
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.predict import Prediction, linearize, predict
from ntk_tt.training_time import training_times
from ntk_tt.verdict import Verdict, assess, judge, linearization_residual, stability

try:
    __version__ = version("ntk-tt")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "LinearizedProblem", "Model", "OptimizerConfig", "Prediction", "Task", "TrainingRun", "Trajectory", "Verdict", "assess", "empirical_ntk", "finetune",
    "from_nnx", "jacobian_features", "judge", "linearization_residual", "linearize", "load_model", "load_task", "ntk_from_features", "predict",
    "simulate", "stability", "training_times",
]
