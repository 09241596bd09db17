"""How the backbone's Jacobian changes on the way: second-order terms along the one direction that
training moves in.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt.kernels.operators import Indices


class Curvature(eqx.Module):
    """B = V·`change`, the change of Ψ between w₀ and w₀ + u₁, along the k directions V (r, k) that
    the head has there; `along` is B u₁.
    """

    change: Float[Array, "n k d"]
    along: Float[Array, "n k"]
    basis: Float[Array, "r k"]
    displacement: Float[Array, " d"]

    def share(self, displacement: Float[Array, " d"]) -> Float[Array, ""]:
        """s, held to 0 … 2: further out a quadratic model means nothing."""
        return jnp.clip(
            displacement @ self.displacement / (self.displacement @ self.displacement), 0, 2
        )

    def move(
        self, displacement: Float[Array, " d"], indices: Indices | None
    ) -> Float[Array, "b r"]:
        """s B u − ½ s² B u₁."""
        change, along = (
            each if indices is None else each[indices] for each in (self.change, self.along)
        )
        share = self.share(displacement)
        return (share * (change @ displacement) - 0.5 * share**2 * along) @ self.basis.T

    def bent(self, displacement: Float[Array, " d"]) -> Float[Array, "n k"]:
        """∂(s B u − ½ s² B u₁)/∂s."""
        return self.change @ displacement - self.share(displacement) * self.along
