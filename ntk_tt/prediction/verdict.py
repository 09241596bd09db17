"""When a prediction should be believed, in words: what follows from margin, residual and doubts."""

import math
from typing import Literal, NamedTuple, get_args

from ntk_tt.prediction.residual import Residual
from ntk_tt.prediction.safe_rate import SafeRate

Trust = Literal["high", "medium", "low", "none"]
# The second limit was chosen on cifar100 and dtd with the bundled network
# (experiments/studies/trust.py). The first was 0.5 from the same data and was tightened after the
# reporting data showed a median error of 28 % below it: it is not held out.
EXPECTED_RESIDUAL_LIMITS = (0.1, 1.2)
CLOSE_MARGIN = 1.5
# With a real head and a kernel that is followed on its way, the margin along that way is what tells
# good predictions from bad: rank correlation with the error −0.7 on the tuning data, more than
# residual or growth (python -m tools.calibrate).
WIDE_MARGIN = 2.5
HOPELESS_MARGIN = 0.1  # past the bound so far, no time of a prediction means anything


class Verdict(NamedTuple):
    """How far to trust a prediction.

    Attributes:
        stability_margin: largest stable learning rate along the predicted way over the highest one
            the setting uses; above 1 is stable, 0 is a way that leaves the finite numbers.
        largest_safe_learning_rate: the largest one that is stable on its own way
            (`safe_learning_rate`), for the same momentum, batch size, weight decay and form of the
            schedule; with a frozen kernel as far as that can tell.
        linearization_residual: ‖f(w) − f_lin(w)‖ / ‖f(w) − f₀‖ on a sample of the data after a few
            real steps; None where it was not measured.
        expected_residual: the same, carried on to the last predicted step; None where it was not
            measured.
        trust: `high`, `medium`, `low`, or `none` past the stability bound.
        reason: one sentence with the numbers.
        seconds_per_sample: of a real training step, measured on the few steps; None where there
            were none.
        safe_rate_by: whether the safe rate is that of a `frozen kernel`, which does not see the
            kernel grow, or of the `kernel on its way`.
        compile_seconds: of the real steps, which training has too; None where there were none.
    """

    stability_margin: float
    largest_safe_learning_rate: float
    linearization_residual: float | None
    expected_residual: float | None
    trust: Trust
    reason: str
    seconds_per_sample: float | None
    safe_rate_by: Literal["frozen kernel", "kernel on its way"] = "frozen kernel"
    compile_seconds: float | None = None


def judge(
    margin: float,
    safe_learning_rate: float | SafeRate,
    residual: Residual | None = None,
    *,
    follows_kernel: bool = False,
    doubts: tuple[tuple[Trust, str], ...] = (),
) -> Verdict:
    """Trust from the margin and the expected residual, the worse one; from the margin alone where
    it is that of a kernel followed on its way (`SmallNetwork`).

    Args:
        doubts: (most trust, reason) of what else speaks against the prediction.
    """
    value, expected, seconds, compile_seconds = residual or (None, None, None, None)
    safe = (
        safe_learning_rate
        if isinstance(safe_learning_rate, SafeRate)
        else SafeRate(safe_learning_rate, True)
    )

    def verdict(trust: Trust, reason: str) -> Verdict:
        for most, doubt in doubts:
            if get_args(Trust).index(most) > get_args(Trust).index(trust):
                trust, reason = most, doubt if most == "none" else f"{reason}; {doubt}"
        return Verdict(
            margin,
            safe.rate,
            value,
            expected,
            trust,
            reason,
            seconds,
            "kernel on its way" if follows_kernel else "frozen kernel",
            compile_seconds,
        )

    if value is not None and not math.isfinite(value):
        return verdict(
            "none",
            "unstable: a few real steps on a sample of the data already gave NaN or infinity; "
            f"{_remedy(safe, follows_kernel)}",
        )
    if not margin >= 1:
        return verdict("none", _unstable(margin, safe, follows_kernel))
    if margin == math.inf and safe.rate == 0:
        return verdict("high", "nothing moves: the learning rate is 0 at every step")
    if margin == math.inf:
        return verdict(
            "low",
            "no curvature was seen on the way, so there is no bound to compare with: the network "
            "does not move, is saturated, or nothing of it that trains matters",
        )
    stable = f"stable with a margin of {margin:.2g} ({_safe(safe, follows_kernel)})"
    if follows_kernel:
        trust: Trust = (
            "high" if margin >= WIDE_MARGIN else "medium" if margin >= CLOSE_MARGIN else "low"
        )
        remark = {
            "high": "",
            "medium": "; not far from the bound, where real training is often slower",
            "low": "; close to the stability bound: expect real training to be slower, and take a "
            "smaller learning rate for a prediction to rely on",
        }[trust]
        measured = (
            "" if value is None else f"; linearisation residual {value:.2g} after a few real steps"
        )
        return verdict(trust, f"{stable}, the kernel followed on its way{measured}{remark}")
    if value is None or expected is None:
        return verdict("medium", f"{stable}; the linearisation was not measured")
    reason = (
        f"{stable}; linearisation residual {value:.2g} after a few real steps, "
        f"{expected:.2g} expected at the end"
    )
    high, medium = EXPECTED_RESIDUAL_LIMITS
    if expected > high:
        reason += "; the kernel changes on the way: `curvature` follows it"
    if margin < CLOSE_MARGIN:
        return verdict(
            "low" if expected > medium else "medium",
            f"{reason}; close to the stability bound, which curvature that grows in training can "
            "cross",
        )
    return verdict(
        "high" if expected <= high else "medium" if expected <= medium else "low", reason
    )


def _unstable(margin: float, safe: SafeRate, follows_kernel: bool) -> str:
    if margin > 0:
        text = (
            f"unstable: the learning rate is {1 / margin:.2g} times the largest stable one on "
            "its way, so real training will oscillate or diverge"
        )
    else:
        text = (
            "unstable: the predicted run itself leaves the finite numbers, or its loss rises "
            "to several times what it was, so real training will diverge"
        )
    return f"{text}; {_remedy(safe, follows_kernel)}"


def _remedy(safe: SafeRate, follows_kernel: bool) -> str:
    if not 0 < safe.rate < math.inf:
        return "take a far smaller one"
    return f"take at most {_rounded(safe.rate)}" + (
        ""
        if follows_kernel
        else ", and less where the kernel grows on the way: `curvature` follows it"
    )


def _safe(safe: SafeRate, follows_kernel: bool) -> str:
    if not safe.is_largest:
        return f"stable too up to a learning rate of at least {_rounded(safe.rate)}"
    if follows_kernel:
        return f"largest safe learning rate {_rounded(safe.rate)}"
    return (
        f"largest stable learning rate {_rounded(safe.rate)} with the kernel frozen; one that "
        "grows on its way allows less"
    )


def _rounded(rate: float) -> str:
    """Three digits, never more than it is: a rate just above the bound is not safe."""
    if not 1e-300 < rate < 1e300:
        return f"{rate:.2g}"
    digits = 2 - math.floor(math.log10(rate))
    return f"{math.floor(rate * 10.0**digits) / 10.0**digits:.3g}"
