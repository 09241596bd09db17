"""What a prediction costs beside training, said before its passes and while they begin."""

import dataclasses

from ntk_tt.features.directions import usual_directions
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.runtime.memory import format_bytes
from ntk_tt.runtime.progress import span
from ntk_tt.surrogate.expansion import MAX_BYTES, SAMPLED

DEAR = 0.1  # of training: more is worth a word
OF_A_STEP = 3  # passes of a sample: forward, backward, and the weights' gradients
_A_ROW = 16  # coordinates of a projection, of `auto`
_REMEDY = "fewer samples cost less, and further settings only their replay"


@dataclasses.dataclass(frozen=True)
class Price:
    """Of the passes of a method. A forward pass and a backward pass through activations count as
    one each, a step of training as three a sample.

    Attributes:
        passes: over the data.
        num_samples: N.
        held: bytes of what they find.
        trained: samples that a run of training sees, T·B; None where no run is asked for.
        num_steps: T.
    """

    passes: int
    num_samples: int
    held: int
    trained: int | None = None
    num_steps: int | None = None

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
        return f"{text}: that is dear beside such a short run; {_REMEDY}"

    def in_seconds(self, sample_seconds: float) -> str:
        """Once the first of them have told how long a sample takes a step of training."""
        seconds = self.passes * self.num_samples * sample_seconds / OF_A_STEP
        text = f"the passes will take about {span(seconds)}"
        if self.trained is None:
            return text
        return f"{text}, training about {span(self.trained * sample_seconds)}"


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
    points = {"head": 1, "curvature": 2}.get(method, 0)
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
    trained = num_steps * optimizer.checked_batch_size(what.num_samples)
    return Price(passes, count, held, trained, num_steps)
