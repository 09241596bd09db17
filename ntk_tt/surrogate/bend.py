"""Second-order terms of a small network along one displacement."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt.kernels.operators import Indices


class Bend(eqx.Module):
    """Second-order terms along one displacement: how the Jacobian changes on the way there.

    Attributes:
        change: B (N, k, D').
        along: B z₁ (N, k).
        displacement: z₁ (D',), in units of z.
        metric: (D',) so that ⟨u, u₁⟩ is z·metric.
    """

    change: Float[Array, "n k d"]
    along: Float[Array, "n k"]
    displacement: Float[Array, " d"]
    metric: Float[Array, " d"]

    def share(self, moved: Float[Array, " d"]) -> Float[Array, ""]:
        """s, held to 0 … 2: further out a quadratic model means nothing."""
        return jnp.clip(moved @ self.metric / (self.displacement @ self.metric), 0, 2)

    def move(self, moved: Float[Array, " d"], indices: Indices | None) -> Float[Array, "b k"]:
        """s B z − ½ s² B z₁."""
        change, along = (
            each if indices is None else each[indices] for each in (self.change, self.along)
        )
        share = self.share(moved)
        return share * (change @ moved) - 0.5 * share**2 * along
