"""From n samples to the N that will be trained on.

Comes in: Θ or the spectrum of a subset. Goes out: the spectrum, or the loss, of the whole. Four
ways:

- `extrapolate_power_law`: appendix D of the paper, a power law with a corrected exponent. It needs
  a constant, α.
- `extrapolate_resolvent`: the deterministic equivalent of sample kernel matrices. No constant, and
  it says how late it can be believed.
- `replay_at_size`: the surrogate of the subset, trained with what each sample does to itself cut to
  what it is among N. Any optimiser, batch and loss; no constant.
- `extrapolate_loss`: the loss on subsets of the subset, continued in 1/n (Richardson). No model of
  the spectrum at all.
"""

from ntk_tt.scaling.from_subset import replay_at_size
from ntk_tt.scaling.halves import Halves, halves_of
from ntk_tt.scaling.power_law import continue_projections, extrapolate_power_law, measure_alpha
from ntk_tt.scaling.resolvent import extrapolate_resolvent
from ntk_tt.scaling.richardson import extrapolate_loss
from ntk_tt.scaling.scaled_trajectory import ScaledTrajectory

__all__ = [
    "Halves",
    "ScaledTrajectory",
    "continue_projections",
    "extrapolate_loss",
    "extrapolate_power_law",
    "extrapolate_resolvent",
    "halves_of",
    "measure_alpha",
    "replay_at_size",
]
