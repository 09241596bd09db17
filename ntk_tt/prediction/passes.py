"""One pass over the data, made, found again, or made of some of the samples."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import numpy as np

from ntk_tt.dynamics import own_way
from ntk_tt.features.contrasts import Outputs
from ntk_tt.features.kept_pass import KeptPass
from ntk_tt.features.store import FeatureStore
from ntk_tt.optimizer import OptimizerConfig, check_sgd
from ntk_tt.prediction.by_method import (
    TRAINED,
    PredictionMethod,
)
from ntk_tt.prediction.effort import capped, subset_for
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.kept_passes import build_features, find_features, kept_pass
from ntk_tt.prediction.price import price_of
from ntk_tt.runtime.progress import Progress, announce, progress_bar
from ntk_tt.runtime.sharding import sample_mesh
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.kept import found_in
from ntk_tt.surrogate.linear_pass import linearize
from ntk_tt.surrogate.problem import Problem
from ntk_tt.surrogate.second_point import NoSecondPoint

AnyMethod = PredictionMethod | Literal["auto"]


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one pass over the data found, for any number of settings.

    Attributes:
        what: the network and its data.
        method: of the prediction; never `auto`.
        reason: why it is this method.
        problem: the surrogate; None with `one-shot`, which makes one for each setting.
        features: the store that they were found in, or None.
        watch: of the pass.
        held_out: the surrogate of samples that are not trained on; None without.
        whole: what training is of, where `what` is a subset of it; None where it is `what`.
    """

    what: Finetuning
    method: PredictionMethod
    reason: str
    problem: Problem | None
    features: FeatureStore | None
    watch: Stopwatch
    held_out: Problem | None = None
    whole: Finetuning | None = None

    @property
    def trained(self) -> Finetuning:
        """What training is of."""
        return self.whole or self.what


def pass_over(
    what: Finetuning,
    method: AnyMethod = "auto",
    *,
    optimizer: OptimizerConfig | None = None,
    num_steps: int | None = None,
    keep: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Pass:
    """The pass of a method; what an earlier one kept is found again.

    Args:
        optimizer, num_steps: where the small network's second point lies on the optimiser's own
            way; without them it lies on that of SGD.
        keep: whether to keep what the pass finds, in the folder that `what` names; one that was
            stopped goes on where it was.
        tell: is given the price of the passes, or where they were found; without it that is said on
            standard error, where it is dear beside the run.

    Raises:
        ValueError: whatever is out of range, or an optimiser that the method does not know.
        OSError: what is to be kept cannot be written.
    """
    if optimizer is not None and method != "auto" and method not in TRAINED:
        check_sgd(optimizer, method)
    chosen, reason = choose(method)
    if what.validation is not None and chosen not in ("head", "curvature"):
        raise ValueError(
            f"validation: {chosen!r} does not follow samples that are not trained on; take "
            "method='auto', 'curvature' or 'head'"
        )
    watch = Stopwatch()
    if chosen == "one-shot":
        with watch:
            pass
        return Pass(what, chosen, reason, None, None, watch)
    price = price_of(what, chosen, optimizer, num_steps)

    def say(stored: FeatureStore | None) -> None:
        if price is None:
            return
        if stored is not None and not keep:
            (tell or announce)(f"the pass over the data is found in {stored.folder}")
        elif tell is not None or price.is_dear:
            (tell or announce)(price.words)

    def told(sample_seconds: float) -> None:
        if price is not None:
            announce(price.in_seconds(sample_seconds))

    with watch, progress_bar("features") as progress:
        if chosen not in TRAINED:
            problem, stored = _linearized(what, chosen, keep, say, progress)
        else:
            kept, stored = _kept(what, chosen, optimizer, num_steps, keep)
            say(stored)
            expanded = partial(_expanded, what, optimizer, num_steps, kept, told, progress)
            try:
                problem = expanded(chosen == "curvature")
            except NoSecondPoint:
                if method != "auto":
                    raise
                chosen, reason = "head", "auto: the network has no finite outputs where it leads"
                problem = expanded(False)
            if keep and kept is not None:
                stored = found_in(kept, 1)
        problem, held_out = _held_out(what, problem)
        jax.block_until_ready(problem)
    return Pass(what, chosen, reason, problem, stored, watch, held_out)


def _held_out(what: Finetuning, problem: Problem) -> tuple[Problem, Problem | None]:
    """The surrogate of what is trained on, and that of what is not."""
    if what.validation is None:
        return problem, None
    count = what.num_views
    others = np.arange(count, count + what.num_validation)
    return problem.of_samples(np.arange(count)), problem.of_samples(others)


def _kept(
    what: Finetuning,
    method: PredictionMethod,
    optimizer: OptimizerConfig | None,
    num_steps: int | None,
    keep: bool,
) -> tuple[KeptPass | None, FeatureStore | None]:
    """Where the passes are kept, or are to be, and the store of what was found there."""
    kept = kept_pass(what, optimizer, num_steps, writes=keep)
    if kept is None or keep:
        return kept, None
    stored = found_in(kept, 2 if method == "curvature" else 1)
    return (None if stored is None else kept), stored


def _expanded(
    what: Finetuning,
    optimizer: OptimizerConfig | None,
    num_steps: int | None,
    kept: KeptPass | None,
    pace: Callable[[float], None],
    progress: Progress,
    curvature: bool,
) -> Problem:
    way = None
    if optimizer is not None and num_steps is not None:
        way = own_way(optimizer, num_steps, key=what.orders)
    inputs, targets = what.looked_at
    shares = what.validation is None and jax.device_count() > 1
    return expand(
        what.model,
        inputs,
        targets,
        curvature=curvature,
        way=way,
        loss=what.loss,
        options=what.options,
        key=what.key,
        mesh=sample_mesh() if shares else None,
        kept=kept,
        pace=pace,
        progress=progress,
    )


def _linearized(
    what: Finetuning,
    method: PredictionMethod,
    keep: bool,
    say: Callable[[FeatureStore | None], None],
    progress: Progress,
) -> tuple[Problem, FeatureStore | None]:
    """With a frozen kernel, and the store of its features."""
    # The paper's diagonal noise lives in the projected coordinates of all C logits.
    diagonal = method.startswith("sde-diagonal")
    outputs: Outputs = "contrasts" if what.loss == "ce" and not diagonal else "logits"
    stored = build_features(what, outputs, progress) if keep else find_features(what, outputs)
    say(stored)
    inputs, targets = what.trained_on
    problem = linearize(
        what.model,
        inputs,
        targets,
        loss=what.loss,
        outputs=outputs,
        options=what.options,
        space="primal" if diagonal else "auto",
        key=what.key,
        mesh=sample_mesh() if stored is None and jax.device_count() > 1 else None,
        features=stored,
        progress=progress,
    )
    return problem, stored


def choose(method: AnyMethod) -> tuple[PredictionMethod, str]:
    """The method that `auto` stands for, and why."""
    if method != "auto":
        return method, "as asked for"
    return "curvature", "auto: the small network with second-order terms, the most exact there is"


def pass_over_some(
    what: Finetuning,
    optimizer: OptimizerConfig,
    num_steps: int,
    effort: int | float,
    *,
    tell: Callable[[str], None] | None = None,
) -> Pass:
    """The pass over so many samples that the prediction costs at most a share of training; its
    predictions are of all.

    Raises:
        ValueError: see `subset_for`.
    """
    subset = subset_for(what, optimizer, num_steps, effort)
    (tell or announce)(subset.words)
    found = pass_over(
        subset.what,
        subset.method,
        optimizer=capped(optimizer, subset.what.num_samples),
        num_steps=num_steps,
        tell=lambda _: None,
    )
    reason = f"effort {effort:g}: {subset.words}"
    return dataclasses.replace(found, reason=reason, whole=what)
