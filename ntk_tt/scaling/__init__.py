"""From n samples to the N that will be trained on.

Comes in: Θ or the spectrum of a subset. Goes out: the spectrum, or the loss, of the whole. Three
ways:

- `extrapolate_power_law`: appendix D of the paper, a power law with a corrected exponent. It needs
  a constant, α.
- `extrapolate_resolvent`: the deterministic equivalent of sample kernel matrices. No constant, and
  it says how late it can be believed.
- `extrapolate_loss`: the loss on subsets of the subset, continued in 1/n (Richardson). No model of
  the spectrum at all.
"""

from ntk_tt.scaling.power_law import continue_projections, extrapolate_power_law, measure_alpha
from ntk_tt.scaling.resolvent import extrapolate_resolvent
from ntk_tt.scaling.richardson import extrapolate_loss

__all__ = [
    "continue_projections",
    "extrapolate_loss",
    "extrapolate_power_law",
    "extrapolate_resolvent",
    "measure_alpha",
]
