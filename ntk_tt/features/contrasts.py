"""The C−1 contrasts of C logits, which are all that softmax cross-entropy sees."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt.jacobian.network import Apply, logits_of

Outputs = Literal["logits", "contrasts"]


def stored_outputs(apply: Apply, num_outputs: int, outputs: Outputs) -> Apply:
    """The network whose features `linearize(..., outputs=outputs, features=...)` takes."""
    return apply if outputs == "logits" else in_contrasts(apply, contrast_basis(num_outputs, float))


def contrast_basis(num_outputs: int, dtype=jnp.float32) -> Float[Array, "c k"]:
    """(C, C−1) orthonormal columns that sum to zero (Helmert's)."""
    rows = np.arange(num_outputs)[:, None]
    columns = np.arange(1, num_outputs)[None, :]
    helmert = np.where(rows < columns, 1.0, np.where(rows == columns, -columns, 0.0))
    return jnp.asarray(helmert / np.sqrt(columns * (columns + 1.0)), dtype)


def in_contrasts(apply: Apply, basis: Float[Array, "c k"]) -> Apply:
    """The network with the C−1 contrasts of its logits as outputs, all that softmax cross-entropy
    sees; see `ContrastKernel`.
    """

    def contrasts(params, inputs):
        logits = logits_of(apply, params, inputs)
        return logits @ basis.astype(logits.dtype)

    return contrasts
