"""Losses as the dynamics need them: value, residual, curvature. Sole owner of the mean
normalisation.

The training loss is the mean over samples, L = (1/N) Σᵢ ℓ(fᵢ, yᵢ): what every trainer minimises.
Nothing else in the package divides by the number of samples of a batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_tt.targets import LossName, check_loss, check_outputs, encode_targets, wrong

__all__ = [
    "LossName",
    "check_loss",
    "check_outputs",
    "curvature_sqrt_product",
    "curvature_sqrt_transpose",
    "encode_targets",
    "error_rate",
    "largest_curvature_per_output",
    "mean_loss",
    "mean_residuals",
    "residuals",
    "sample_losses",
]

Logits = Float[Array, "n c"]
Targets = Float[Array, "n c"]


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


def mean_residuals(
    loss: LossName, logits: Logits, targets: Targets, num_samples: int | None = None
) -> Logits:
    """∂L/∂f = gᵢ/N, with N the number of rows given (all samples, or a mini-batch), or
    `num_samples` where they are a part of these.
    """
    return residuals(loss, logits, targets) / (
        logits.shape[0] if num_samples is None else num_samples
    )


def curvature_sqrt_product(loss: LossName, logits: Logits, vectors: Logits) -> Logits:
    """H^{1/2} v for each sample, H = ∂²ℓ/∂f²: the identity for `mse`, diag(p) − p pᵀ for `ce`.

    diag(p) − p pᵀ = A Aᵀ with A = diag(√p) − p √pᵀ; any such square root gives the same spectrum of
    H^{1/2} Θ H^{1/2}. This returns A v; `curvature_sqrt_transpose` returns Aᵀ v.
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
    """The largest eigenvalue that ∂²ℓ/∂f² can have: ½ for softmax cross-entropy, 1 for ½‖f −
    y‖².
    """
    return 1.0 if loss == "mse" else 0.5


def error_rate(logits: Logits, targets: Targets) -> Float[Array, ""]:
    """Share of samples classified wrongly (`ntk_tt.targets.wrong`); NaN where a logit is not
    finite, which would count as some class.
    """
    return jnp.where(jnp.isfinite(logits).all(), wrong(logits, targets).mean(), jnp.nan)
