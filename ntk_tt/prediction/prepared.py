"""Predictions of any number of settings from one pass over the data."""

import dataclasses
from typing import Any

import numpy as np

from ntk_tt.optimizer import OptimizerConfig, check_sgd
from ntk_tt.prediction.assessment import assess
from ntk_tt.prediction.by_method import (
    TRAINED,
    Predicted,
    PredictionMethod,
    Recording,
    as_slow_as,
    first_real_steps,
    is_hopeless,
    observed,
    without_times,
)
from ntk_tt.prediction.effort import capped, doubted, predicted_at_size
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.one_setting import plateau_window, predict, summarize_runs
from ntk_tt.prediction.one_shot import predict_after
from ntk_tt.prediction.passes import Pass
from ntk_tt.prediction.verdict import Verdict
from ntk_tt.runtime.progress import progress_bar
from ntk_tt.runtime.stopwatch import Stopwatch


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A prediction with all that belongs to it.

    Attributes:
        what, method, reason: of the pass.
        optimizer, recording: what was asked for.
        predicted: curve and times, as verdict and real steps leave them.
        verdict: how far to trust it.
        watches: of features, dynamics, verdict and observed steps.
    """

    what: Finetuning
    method: PredictionMethod
    reason: str
    optimizer: OptimizerConfig
    recording: Recording
    predicted: Predicted
    verdict: Verdict
    watches: dict[str, Stopwatch]

    @property
    def has_times(self) -> bool:
        """Whether its times mean anything: not so far past the bound, unless real steps say."""
        return "observed" in self.watches or not is_hopeless(self.verdict)

    @property
    def train_seconds(self) -> float:
        """Seconds of training, from the verdict's real steps; without compilation."""
        assert self.verdict.seconds_per_sample is not None
        batch_size = self.optimizer.checked_batch_size(self.what.num_samples)
        return self.verdict.seconds_per_sample * batch_size * self.recording.num_steps


def predict_from(
    prepared: Pass,
    optimizer: OptimizerConfig,
    recording: Recording,
    *,
    num_seeds: int = 5,
    first_steps: int | None = None,
    observe: int | None = None,
) -> Outcome:
    """The prediction of one setting with its verdict, slowed as real runs are, and corrected by the
    first real steps where some are to be observed.

    Raises:
        ValueError: an optimiser that the method does not know, or whatever is out of range.
    """
    what, method = prepared.what, prepared.method
    whole, runs = prepared.trained, ()
    inputs, targets = what.trained_on
    if prepared.whole is None or prepared.problem is None:
        predicted = _predicted(prepared, optimizer, recording, num_seeds, first_steps)
    else:
        predicted, runs = predicted_at_size(
            prepared.problem, whole, optimizer, recording, num_seeds, prepared.watch
        )
    watches = dict(predicted.watches)
    with Stopwatch() as watches["verdict"], progress_bar("verdict") as progress:
        verdict = assess(
            predicted.problem,
            what.model,
            inputs,
            np.asarray(targets),
            capped(optimizer, len(targets)),
            recording.num_steps,
            path=predicted.prediction.runs[0].states,
            curve=predicted.prediction.loss,
            key=what.first_order(len(predicted.prediction.runs)),
            seed=what.seed,
            progress=progress,
        )
    if runs:
        verdict = doubted(verdict, runs, predicted.misfit)
    margin = verdict.stability_margin
    predicted = as_slow_as(predicted, method, margin, recording, optimizer, whole.num_samples)
    if observe is not None:
        every = min(recording.record_every, max(1, observe // 8))
        with Stopwatch() as watches["observed"]:
            seen = first_real_steps(whole, optimizer, observe, every)
            predicted = observed(predicted, method, seen, recording, optimizer, whole.num_samples)
    elif is_hopeless(verdict):
        predicted = without_times(predicted)
    return Outcome(
        whole, method, prepared.reason, optimizer, recording, predicted, verdict, watches
    )


def _predicted(
    prepared: Pass,
    optimizer: OptimizerConfig,
    recording: Recording,
    num_seeds: int,
    first_steps: int | None,
) -> Predicted:
    what, method = prepared.what, prepared.method
    if method not in TRAINED:
        check_sgd(optimizer, method)
    dynamics: Any = Stopwatch()
    if prepared.problem is None:
        features = Stopwatch()
        with features, progress_bar("features") as progress:
            shot = predict_after(
                what.model,
                *what.trained_on,
                optimizer,
                recording.num_steps,
                first_steps=first_steps,
                loss=what.loss,
                options=what.options,
                num_seeds=num_seeds,
                record_every=recording.record_every,
                seed=what.seed + 3,
                key=what.key,
                progress=progress,
            )
        with dynamics:
            prediction = summarize_runs(
                shot.trajectories,
                plateau_window(optimizer, what.num_samples),
                **recording.of_times,
            )
        problem, real_steps = shot.problem, int(shot.run.steps[-1])
    else:
        features, problem, real_steps = prepared.watch, prepared.problem, 0
        dynamics_method: Any = "replay" if method in TRAINED else method
        with dynamics, progress_bar("dynamics") as progress:
            prediction = predict(
                problem,
                optimizer,
                recording.num_steps,
                method=dynamics_method,
                num_seeds=num_seeds,
                key=what.orders,
                record_every=recording.record_every,
                beside=prepared.held_out,
                progress=progress,
                **recording.of_times,
            )
    return Predicted(
        problem,
        prediction,
        prepared.features,
        real_steps,
        {"features": features, "dynamics": dynamics},
        is_calibrated=optimizer.is_sgd,
    )
