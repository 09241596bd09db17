"""What a subset tells of the training of N samples."""

import math

import equinox as eqx
import numpy as np

from ntk_tt.dynamics.trajectory import Trajectory

# up to which subsets of points and a linear network were within 20 %, and beyond which they erred
# high, by more the further (docs/from-a-subset.md, tests/test_effort.py)
MOST_LEVERAGE = 0.4


class ScaledTrajectory(Trajectory):
    """The training curve of N samples, as a subset tells it.

    Attributes:
        num_samples, subset_size: N and n.
        batch_loss: (S,) what a log of mini-batch losses shows: of samples as they come, before the
            step on them. In the first epoch none has been seen before.
        validation_loss, validation_error: (S,) of samples that are not trained on.
        spread: (S,) what n samples add to the loss of others, since training follows the luck of
            their draw; but for the n/N of it that N samples have, it is taken off already.
        leverage: (S,) how far the n samples are fitted one by one at the resolution that training
            has reached: 0 not at all, 1 all.
    """

    num_samples: int = eqx.field(static=True, kw_only=True)
    subset_size: int = eqx.field(static=True, kw_only=True)
    batch_loss: np.ndarray = eqx.field(kw_only=True)
    spread: np.ndarray = eqx.field(kw_only=True)
    leverage: np.ndarray = eqx.field(kw_only=True)

    @property
    def best_step(self) -> int:
        """The step of least validation loss."""
        return int(self.steps[np.nanargmin(np.asarray(self.validation_loss))])

    @property
    def trusted_until(self) -> int:
        """The last step up to which the subset has enough samples."""
        good = np.minimum.accumulate(self.leverage <= MOST_LEVERAGE)
        return int(self.steps[good][-1]) if good.any() else 0

    @property
    def samples_needed(self) -> int:
        """About how many samples the subset needs for all steps; modes that are learnt do not
        depend on their number.
        """
        return math.ceil(float(self.leverage.max()) / MOST_LEVERAGE * self.subset_size)
