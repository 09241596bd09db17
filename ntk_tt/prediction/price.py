"""What a prediction costs beside training, said before its passes and while they begin."""

import dataclasses

import jax

from ntk_tt.features.directions import usual_directions
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.runtime.memory import format_bytes
from ntk_tt.runtime.progress import span
from ntk_tt.surrogate.expansion import MAX_BYTES, SAMPLED

DEAR = 0.1  # of training: more is worth a word
OF_A_STEP = 3  # passes of a sample: forward, backward, and the weights' gradients
_POINTS = {"head": 1, "curvature": 2}
_WITHOUT_NOISE = ("ode",)
_A_ROW = 16  # coordinates of a projection, of `auto`
_DEAR = "that is dear beside such a short run"
_REMEDY = "fewer samples cost less, and further settings only their replay"
# Measured on two cores of an AMD EPYC with JAX 0.10.2: numbers of Ψ that go through a product in a
# second, seconds of a step beside its products, and of compiling: all, and each parameter's.
_NUMBERS, _STEP, _COMPILING = 4e9, 5e-4, (5.0, 0.3)
# Of a usual prediction and its verdict: orders of the data, records with mini-batches, looks at Θ
# and times that Ψ is read for one, ways that are followed, real steps with what is taken of them.
_RUNS, _RECORDS, _LOOKS, _A_LOOK, _WAYS, _REAL = 5, 50, 30, 4, 2, 10
_LOOKED_AT = 64  # samples of a real step, at most


@dataclasses.dataclass(frozen=True)
class Later:
    """What comes after the passes, in seconds.

    Attributes:
        replay, verdict: as they usually are; of the verdict without the real steps.
        compiling: of all of it, where no programs are found that an earlier run has kept.
    """

    replay: float
    verdict: float
    compiling: float

    def with_real_steps(self, seconds: float) -> "Later":
        """With those of the verdict."""
        return dataclasses.replace(self, verdict=self.verdict + seconds)


@dataclasses.dataclass(frozen=True)
class Price:
    """Of the passes of a method, and what follows them. A forward pass and a backward pass through
    activations count as one each, a step of training as three a sample.

    Attributes:
        passes: over the data.
        num_samples: N.
        held: bytes of what they find.
        trained: samples that a run of training sees, T·B; None where no run is asked for.
        num_steps: T.
        later: what follows the passes; None where no run is asked for.
    """

    passes: int
    num_samples: int
    held: int
    trained: int | None = None
    num_steps: int | None = None
    later: Later | None = None

    @property
    def share(self) -> float | None:
        """Of the time that training takes."""
        if self.trained is None:
            return None
        return self.passes * self.num_samples / (OF_A_STEP * self.trained)

    @property
    def is_dear(self) -> bool:
        """Whether that is worth a word."""
        return self.share is not None and self.share > DEAR

    @property
    def words(self) -> str:
        """Before the passes."""
        text = f"predicting takes {self.passes} passes over {self.num_samples:,} samples"
        share = self.share
        if share is None or self.num_steps is None:
            return f"{text} and {format_bytes(self.held)} of memory"
        text += (
            f", as much as {max(1, round(share * self.num_steps)):,} of the {self.num_steps:,} "
            f"training steps, and {format_bytes(self.held)} of memory"
        )
        if not self.is_dear:
            return text
        return f"{text}: {_DEAR}; {_REMEDY}"

    def in_seconds(self, sample_seconds: float) -> str:
        """Once the first of them have told how long a sample takes a step of training."""
        passes = self.passes * self.num_samples * sample_seconds / OF_A_STEP
        if self.trained is None or self.later is None:
            return f"the passes will take about {span(passes)}"
        training = self.trained * sample_seconds
        looked_at = min(_LOOKED_AT, self.num_samples)
        later = self.later.with_real_steps(_REAL * looked_at * sample_seconds)
        seconds = passes + later.replay + later.verdict
        text = (
            f"predicting will take about {span(seconds)} (passes {span(passes)}, replay "
            f"{span(later.replay)}, verdict {span(later.verdict)}), compiling up to "
            f"{span(later.compiling)}, training about {span(training)}"
        )
        if self.is_dear or seconds <= DEAR * training:
            return text
        return f"{text}: {_DEAR}; {_REMEDY}"


def directions_of_setting(what: Finetuning, optimizer: OptimizerConfig | None) -> int:
    """k, along which a small network looks at each sample for this optimiser."""
    preconditioned = optimizer is not None and not optimizer.is_sgd
    return sum(usual_directions(what.num_outputs, what.loss, preconditioned=preconditioned))


def num_passes(points: int, directions: int) -> int:
    """Over the data, of a small network with one expansion point or two: a forward and k backward
    passes at each, and one of training's kind on the way to the second.
    """
    return points * (1 + directions) + (OF_A_STEP if points == 2 else 0)


def price_of(
    what: Finetuning,
    method: str,
    optimizer: OptimizerConfig | None = None,
    num_steps: int | None = None,
) -> Price | None:
    """The price of a method; None where real steps come before the passes.

    Args:
        method: of the prediction, not `auto`.
    """
    if method == "one-shot":
        return None
    points = _POINTS.get(method, 0)
    count = what.num_views + what.num_validation
    if points:
        directions = directions_of_setting(what, optimizer)
        passes, rows = num_passes(points, directions), points * count * directions
        wanted = SAMPLED
    else:
        pulled = what.num_outputs - (what.loss == "ce")
        passes, rows = 1 + pulled, count * pulled
        wanted = _A_ROW * rows
    asked = what.options.num_projections
    width = min(what.model.num_params, asked if isinstance(asked, int) else wanted)
    held = min(MAX_BYTES, 4 * rows * width)
    if optimizer is None or num_steps is None:
        return Price(passes, count, held)
    batch_size = optimizer.checked_batch_size(what.num_samples)
    later = _later(what, method, optimizer, num_steps, rows * min(width, rows))
    return Price(passes, count, held, num_steps * batch_size, num_steps, later)


def _later(
    what: Finetuning, method: str, optimizer: OptimizerConfig, num_steps: int, numbers: int
) -> Later:
    """
    Args:
        numbers: of Ψ, or of the kernel of all samples.
    """
    share = optimizer.checked_batch_size(what.num_samples) / what.num_samples
    a_run = num_steps * (_STEP + 2 * share * numbers / _NUMBERS)  # there and back
    is_full = optimizer.is_full_batch(what.num_samples)
    runs = 1 if is_full or method in _WITHOUT_NOISE else _RUNS
    records = 0 if is_full else min(num_steps, _RECORDS)
    replay = runs * (a_run + records * numbers / _NUMBERS)
    verdict = _WAYS * a_run + _LOOKS * _A_LOOK * numbers / _NUMBERS
    least, each = _COMPILING
    return Later(replay, verdict, least + each * len(jax.tree.leaves(what.model.params)))
