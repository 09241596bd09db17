"""Many settings priced from one pass: replayed together, and judged by looks that they share."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk_tt.dynamics.many_on_the_way import path_steps, replay_blocks
from ntk_tt.dynamics.methods import is_random
from ntk_tt.dynamics.trajectory import Trajectory
from ntk_tt.optimizer import OptimizerConfig, check_num_seeds
from ntk_tt.prediction.assessment import doubts_of
from ntk_tt.prediction.by_method import Predicted, Recording, is_hopeless, without_times
from ntk_tt.prediction.many_margins import margins_of
from ntk_tt.prediction.margin import look_steps
from ntk_tt.prediction.one_setting import Prediction
from ntk_tt.prediction.passes import Pass
from ntk_tt.prediction.prepared import Outcome, predict_from
from ntk_tt.prediction.safe_rate import NARROW, SafeRate
from ntk_tt.prediction.setting_space import SweptSetting
from ntk_tt.prediction.verdict import judge
from ntk_tt.runtime.interruption import go_on_to_the_end
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.runtime.stopwatch import Stopwatch
from ntk_tt.times.calibration import slowdown, slowed
from ntk_tt.times.crossing import DEFAULT_THRESHOLDS
from ntk_tt.training import finetune

_TIMED_STEPS = 5
# beside the learning rate: settings that differ in nothing else are stable up to one rate
_RATE = ("learning_rate",)


class Pace(NamedTuple):
    """What a real step takes on this machine.

    Attributes:
        seconds_per_step: compiled and warm.
        compile_seconds: before the first.
    """

    seconds_per_step: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        settings: that are priced, in the order in which they were given.
        outcomes: of each; the same curves and trust as `predict_from` gives with as many orders of
            the data, without the times of all thresholds.
        num_asked: settings that were asked for: more than these where it was interrupted.
        paces: real steps by batch size.
        watches: of replay with looks, and of the real steps.
    """

    settings: tuple[SweptSetting, ...]
    outcomes: tuple[Outcome, ...]
    num_asked: int
    paces: dict[int, Pace]
    watches: dict[str, Stopwatch]


class _Curves(NamedTuple):
    """Of one setting: a curve for each order of the data, and its margin."""

    runs: tuple[Trajectory, ...]
    margin: float


def sweep(
    prepared: Pass,
    settings: Sequence[SweptSetting],
    *,
    num_seeds: int = 1,
    record_every: int | None = None,
    smoothing: int | None = None,
    paces: dict[int, Pace] | None = None,
    memory: int | None = None,
    progress: Progress = silent,
) -> Swept:
    """The predictions of many settings.

    Settings that differ in numbers alone are replayed in one program, in blocks that fit into
    memory, and looked at together for their verdicts. A verdict goes by the margin along a
    setting's own way, as that of a single prediction does; the real steps are taken once for each
    batch size. Where a setting is not stable, the largest rate among those that differ in nothing
    else says what is.

    Args:
        prepared: the pass. Only `head` and `curvature` run together; other methods go one by one.
        settings: what to price.
        num_seeds: orders of the data.
        record_every, smoothing: as `Prepared.predict` takes them.
        paces: real steps by batch size, where they are known.
        memory: bytes that settings that run together may take.
        progress: called as `progress(done, total)`.

    Raises:
        ValueError: no settings, or whatever a single prediction raises.
        KeyboardInterrupt: before anything was there; later what is there is returned.

    Cost: a tenth to a fifth of a replay for each setting, and about a third of that for its verdict
    (docs/sweeps.md).
    """
    if not settings:
        raise ValueError("settings: there are none; give at least one")
    check_num_seeds(num_seeds)
    what = prepared.what
    if prepared.whole is not None:
        raise ValueError(
            "effort: one setting at a time is predicted from a subset; prepare without it to sweep"
        )
    recordings = [_recording(what.num_samples, each, record_every, smoothing) for each in settings]
    is_together = prepared.problem is not None and prepared.problem.takes_any_optimizer
    real, together = Stopwatch(), Stopwatch()
    with real:
        known = dict(paces or {})
        known |= {} if not is_together else _paces(prepared, settings, known)
    found: dict[int, Any] = {}
    with together:
        try:
            if is_together:
                _run_together(prepared, settings, recordings, num_seeds, memory, found, progress)
            else:
                for index, each in enumerate(settings):
                    found[index] = predict_from(
                        prepared, each.optimizer, recordings[index], num_seeds=num_seeds
                    )
                    progress(index + 1, len(settings))
        except KeyboardInterrupt:
            if not found:
                raise
            go_on_to_the_end()
    watches = {"replay": together, "real steps": real}
    kept = sorted(found)
    rates = (
        _safe_rates([(settings[index], found[index].margin) for index in kept])
        if (is_together)
        else {}
    )
    outcomes = [
        _outcome(prepared, settings[index], recordings[index], found[index], rates, known)
        if is_together
        else found[index]
        for index in kept
    ]
    return Swept(
        tuple(settings[index] for index in kept), tuple(outcomes), len(settings), known, watches
    )


def _recording(
    num_samples: int, setting: SweptSetting, record_every: int | None, smoothing: int | None
) -> Recording:
    is_full = setting.optimizer.is_full_batch(num_samples)
    return Recording(
        setting.num_steps,
        record_every or (1 if is_full else max(1, setting.num_steps // 50)),
        DEFAULT_THRESHOLDS,
        (),
        smoothing or (1 if is_full else 3),
    )


def _run_together(
    prepared: Pass,
    settings: Sequence[SweptSetting],
    recordings: Sequence[Recording],
    num_seeds: int,
    memory: int | None,
    found: dict[int, _Curves],
    progress: Progress,
) -> None:
    """Fills `found` block by block."""
    problem, what = prepared.problem, prepared.what
    assert problem is not None
    groups: dict[tuple, list[int]] = {}
    for index, (setting, recording) in enumerate(zip(settings, recordings, strict=True)):
        random = is_random("replay", setting.optimizer, what.num_samples)
        common = (setting.num_steps, recording.record_every, random)
        groups.setdefault(common, []).append(index)
    for (num_steps, every, random), members in groups.items():
        keys = jax.random.split(what.orders, num_seeds if random else 1)
        path = path_steps(num_steps, every)
        optimizers = [settings[index].optimizer for index in members]
        margins: dict[int, float] = {}
        runs: dict[int, list[Trajectory]] = {}
        for number, key in enumerate(keys):
            blocks = replay_blocks(
                problem,
                optimizers,
                num_steps,
                key=key,
                record_every=every,
                keep=[] if number else sorted({*path, *look_steps(num_steps)}),
                memory=memory,
            )
            for block in blocks:
                if number == 0:
                    looked = margins_of(block, optimizers, num_steps, path)
                    margins |= dict(zip(block.members, map(float, looked), strict=True))
                for place, run in zip(block.members, block.trajectories, strict=True):
                    runs.setdefault(place, []).append(run)
                    if len(runs[place]) == len(keys):
                        found[members[place]] = _Curves(tuple(runs[place]), margins[place])
                progress(len(found), len(settings))


def _paces(
    prepared: Pass, settings: Sequence[SweptSetting], known: dict[int, Pace]
) -> dict[int, Pace]:
    """A few real steps of each batch size."""
    what, found = prepared.what, {}
    for setting in sorted(settings, key=_peak):  # the mildest, which does not diverge
        size = setting.optimizer.checked_batch_size(what.num_samples)
        if size in known or size in found:
            continue
        run = finetune(
            what.model,
            what.inputs,
            what.targets,
            setting.optimizer,
            _TIMED_STEPS,
            loss=what.loss,
            augment=what.augment,
            seed=what.seed + 2,
            record_every=_TIMED_STEPS,
        )
        found[size] = Pace(float(run.step_seconds), float(run.compile_seconds))
    return found


def _family(setting: SweptSetting) -> str:
    """What settings have in common that differ in their rate alone."""
    own = setting.optimizer.transformation
    others = {name: each for name, each in setting.values.items() if name not in _RATE}
    return repr((others, None if own is None else id(own)))


def _safe_rates(margins: Sequence[tuple[SweptSetting, float]]) -> dict[str, SafeRate]:
    """The largest rate of each family that is stable in the sweep."""
    families: dict[str, list[tuple[float, float]]] = {}
    for setting, margin in margins:
        families.setdefault(_family(setting), []).append((_peak(setting), margin))
    found = {}
    for family, pairs in families.items():
        bad = min((rate for rate, margin in pairs if not margin >= 1), default=np.inf)
        best = max((rate for rate, margin in pairs if margin >= 1 and rate < bad), default=0.0)
        found[family] = SafeRate(best, bool(best and bad <= NARROW * best))
    return found


def _peak(setting: SweptSetting) -> float:
    return float(setting.optimizer.learning_rates(setting.num_steps).max())


def _outcome(
    prepared: Pass,
    setting: SweptSetting,
    recording: Recording,
    curves: _Curves,
    rates: dict[str, SafeRate],
    paces: dict[int, Pace],
) -> Outcome:
    """The prediction of one setting with its verdict, as `predict_from` makes it."""
    what, problem, method = prepared.what, prepared.problem, prepared.method
    assert problem is not None
    optimizer: OptimizerConfig = setting.optimizer
    size = optimizer.checked_batch_size(what.num_samples)
    pace = paces[size]
    verdict = judge(
        curves.margin,
        rates[_family(setting)],
        follows_kernel=problem.follows_kernel,
        doubts=doubts_of(problem, optimizer, np.mean([run.loss for run in curves.runs], 0)),
    )._replace(
        seconds_per_sample=pace.seconds_per_step / size, compile_seconds=pace.compile_seconds
    )
    factor = slowdown(method, curves.margin) if optimizer.is_sgd else 1.0
    runs = curves.runs
    if factor != 1:
        runs = tuple(
            Trajectory(
                run.steps,
                slowed(run.steps, run.loss, factor),
                slowed(run.steps, run.error, factor),
            )
            for run in runs
        )
    mean = [np.mean([getattr(run, name) for run in runs], 0) for name in ("loss", "error")]
    predicted = Predicted(
        problem,
        Prediction(runs[0].steps, mean[0], mean[1], {}, {}, {}, runs),
        prepared.features,
        0,
        {},
        slowdown=factor,
        is_calibrated=optimizer.is_sgd,
    )
    if is_hopeless(verdict):
        predicted = without_times(predicted)
    return Outcome(what, method, prepared.reason, optimizer, recording, predicted, verdict, {})
