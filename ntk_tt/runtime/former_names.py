"""What version 0.1 called otherwise: programs written for it run on for one release, and a
DeprecationWarning says what a thing is called now.

Former modules are found by the last of Python's finders, so that nothing is asked here for a module
that is there.
"""

import importlib
import importlib.machinery
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

# what the root exported, the room that has it, and its name there
NAMES = {
    "HeadProblem": ("ntk_tt.surrogate", "SmallNetwork"),
    "linearize_head": ("ntk_tt.surrogate", "expand"),
    "FeatureStore": ("ntk_tt.features", "FeatureStore"),
    "Forecast": ("ntk_tt.times.online", "Forecast"),
    "LinearizedProblem": ("ntk_tt.surrogate", "LinearizedProblem"),
    "LoRA": ("ntk_tt.models.lora", "LoRA"),
    "OneShot": ("ntk_tt.prediction", "OneShot"),
    "Prediction": ("ntk_tt.prediction", "Prediction"),
    "Predictor": ("ntk_tt.times.online", "Predictor"),
    "SmallNetwork": ("ntk_tt.surrogate", "SmallNetwork"),
    "Spectrum": ("ntk_tt.kernels", "Spectrum"),
    "Trajectory": ("ntk_tt.dynamics", "Trajectory"),
    "Verdict": ("ntk_tt.prediction", "Verdict"),
    "assess": ("ntk_tt.prediction", "assess"),
    "describe_data": ("ntk_tt.data", "describe_data"),
    "empirical_ntk": ("ntk_tt.kernels", "empirical_ntk"),
    "expand": ("ntk_tt.surrogate", "expand"),
    "extrapolate_loss": ("ntk_tt.scaling", "extrapolate_loss"),
    "extrapolate_power_law": ("ntk_tt.scaling", "extrapolate_power_law"),
    "extrapolate_resolvent": ("ntk_tt.scaling", "extrapolate_resolvent"),
    "fit_linear_head": ("ntk_tt.models", "fit_linear_head"),
    "fit_power_law": ("ntk_tt.kernels", "fit_power_law"),
    "jacobian_features": ("ntk_tt.features", "jacobian_features"),
    "judge": ("ntk_tt.prediction", "judge"),
    "linearization_residual": ("ntk_tt.prediction", "linearization_residual"),
    "linearize": ("ntk_tt.surrogate", "linearize"),
    "load_factory": ("ntk_tt.models.factory", "load_factory"),
    "loss_callback": ("ntk_tt.times.online", "loss_callback"),
    "measure_alpha": ("ntk_tt.scaling", "measure_alpha"),
    "ntk_from_features": ("ntk_tt.kernels", "ntk_from_features"),
    "ntk_spectrum": ("ntk_tt.kernels", "ntk_spectrum"),
    "predict": ("ntk_tt.prediction", "predict"),
    "predict_after": ("ntk_tt.prediction", "predict_after"),
    "sample_mesh": ("ntk_tt.runtime.sharding", "sample_mesh"),
    "simulate": ("ntk_tt.dynamics", "simulate"),
    "slowdown": ("ntk_tt.times.calibration", "slowdown"),
    "slowed": ("ntk_tt.times.calibration", "slowed"),
    "stability": ("ntk_tt.prediction", "stability"),
    "stored_outputs": ("ntk_tt.features", "stored_outputs"),
    "training_times": ("ntk_tt.times.crossing", "training_times"),
    "write_features": ("ntk_tt.features", "write_features"),
}
MODULES = {
    "calibration": "times.calibration",
    "closed_loop": "times.online",
    "compilation": "runtime.compilation",
    "extrapolation": "times.loss_law",
    "files": "runtime.files",
    "jaxpr": "jacobian.jaxpr",
    "layers": "jacobian.layers",
    "log_columns": "times.log_columns",
    "loss_log": "times.loss_log",
    "manifest": "features.manifest",
    "memory": "runtime.memory",
    "ntk": "kernels.empirical",
    "observations": "times.observations",
    "one_shot": "prediction.one_shot",
    "paths": "runtime.parameter_names",
    "plot": "report.figure",
    "problem": "surrogate.linear",
    "progress": "runtime.progress",
    "projection": "features.projections",
    "setup": "prediction.setup",
    "sharding": "runtime.sharding",
    "spectrum": "kernels.spectrum",
    "stable_rate": "prediction.margin",
    "store": "features.store",
    "structured": "jacobian.structured",
    "trainable": "models.trainable",
    "training_time": "times.crossing",
    "verdict": "prediction.verdict",
    "watch": "times.watcher",
}


def warn(former: str, now: str) -> None:
    """Once for each line of the user's program that says the former name."""
    warnings.warn(f"{former} is now {now}", DeprecationWarning, stacklevel=3)


def renamed(name: str) -> Any:
    """What the package itself exported under a name.

    Raises:
        AttributeError: nothing.
    """
    if name not in NAMES:
        raise AttributeError(f"module 'ntk_tt' has no attribute {name!r}")
    module, now = NAMES[name]
    warn(f"ntk_tt.{name}", f"{module}.{now}")
    return getattr(importlib.import_module(module), now)


class FormerModules(MetaPathFinder, Loader):
    """Finds former modules: empty ones, whose attributes are those of the modules of today."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        room, _, name = fullname.partition(".")
        if room != "ntk_tt" or name not in MODULES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        now = f"ntk_tt.{MODULES[former.removeprefix('ntk_tt.')]}"
        found = importlib.import_module(now)
        warn(former, now)
        module.__getattr__ = lambda name: getattr(found, name)


def find_former_modules() -> None:
    if not any(isinstance(each, FormerModules) for each in sys.meta_path):
        sys.meta_path.append(FormerModules())
