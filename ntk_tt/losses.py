"""Losses as the dynamics need them: value, residual, curvature. Sole owner of the mean normalisation.

The training loss is the mean over samples, L = (1/N) Σᵢ ℓ(fᵢ, yᵢ): what every trainer minimises. Nothing else in the
package divides by the number of samples of a batch.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LossName = Literal["ce", "mse"]

Logits = Float[Array, "n c"]
Targets = Float[Array, "n c"]


def check_loss(loss: str) -> None:
    if loss not in get_args(LossName):
        raise ValueError(f"loss: unknown {loss!r}; give 'ce' (softmax cross-entropy) or 'mse' (½‖f − y‖²)")


def encode_targets(labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"], num_outputs: int, dtype=jnp.float32) -> Targets:
    """Integer labels as one-hot rows; real-valued targets as they are.

    Raises:
        ValueError: a label outside 0 … C−1, targets of another shape, or NaN among them.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        if labels.shape[1:] != (num_outputs,):
            raise ValueError(f"labels: real targets must have shape (N, {num_outputs}) like the logits, got {labels.shape}")
        if not np.isfinite(labels).all():
            raise ValueError("labels: the targets hold NaN or infinity; remove those samples")
        return jnp.asarray(labels, dtype)
    if labels.ndim != 1:
        raise ValueError(f"labels: integer labels must have shape (N,), got {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_outputs:
        raise ValueError(f"labels: must lie in 0 … {num_outputs - 1} (the network has {num_outputs} outputs), got {labels.min()} … {labels.max()}")
    return jax.nn.one_hot(labels, num_outputs, dtype=dtype)


def sample_losses(loss: LossName, logits: Logits, targets: Targets) -> Float[Array, " n"]:
    """ℓ(fᵢ, yᵢ): −Σ y log softmax(f) for `ce`, ½‖f − y‖² for `mse`."""
    if loss == "mse":
        return 0.5 * jnp.square(logits - targets).sum(-1)
    return -(targets * jax.nn.log_softmax(logits)).sum(-1)


def residuals(loss: LossName, logits: Logits, targets: Targets) -> Logits:
    """gᵢ = ∂ℓ(fᵢ, yᵢ)/∂fᵢ: softmax(f) − y for `ce`, f − y for `mse`."""
    return (logits if loss == "mse" else jax.nn.softmax(logits)) - targets


def mean_loss(loss: LossName, logits: Logits, targets: Targets) -> Float[Array, ""]:
    """L = (1/N) Σᵢ ℓ(fᵢ, yᵢ)."""
    return sample_losses(loss, logits, targets).mean()


def mean_residuals(loss: LossName, logits: Logits, targets: Targets, num_samples: int | None = None) -> Logits:
    """∂L/∂f = gᵢ/N, with N the number of rows given (all samples, or a mini-batch), or `num_samples` where they are a part of these."""
    return residuals(loss, logits, targets) / (logits.shape[0] if num_samples is None else num_samples)


def curvature_sqrt_product(loss: LossName, logits: Logits, vectors: Logits) -> Logits:
    """H^{1/2} v for each sample, H = ∂²ℓ/∂f²: the identity for `mse`, diag(p) − p pᵀ for `ce`.

    diag(p) − p pᵀ = A Aᵀ with A = diag(√p) − p √pᵀ; any such square root gives the same spectrum of H^{1/2} Θ H^{1/2}.
    This returns A v; `curvature_sqrt_transpose` returns Aᵀ v.
    """
    if loss == "mse":
        return vectors
    p = jax.nn.softmax(logits)
    return jnp.sqrt(p) * vectors - p * (jnp.sqrt(p) * vectors).sum(-1, keepdims=True)


def curvature_sqrt_transpose(loss: LossName, logits: Logits, vectors: Logits) -> Logits:
    """Aᵀ v for the A of `curvature_sqrt_product`."""
    if loss == "mse":
        return vectors
    p = jax.nn.softmax(logits)
    return jnp.sqrt(p) * (vectors - (p * vectors).sum(-1, keepdims=True))


def largest_curvature_per_output(loss: LossName) -> float:
    """The largest eigenvalue that ∂²ℓ/∂f² can have: ½ for softmax cross-entropy, 1 for ½‖f − y‖²."""
    return 1.0 if loss == "mse" else 0.5


def error_rate(logits: Logits, targets: Targets) -> Float[Array, ""]:
    """Share of samples classified wrongly: by the largest logit, or by the sign where there is one output."""
    if logits.shape[-1] == 1:
        return (jnp.sign(logits) != jnp.sign(targets)).mean()
    return (logits.argmax(-1) != targets.argmax(-1)).mean()
