"""What a sample does to itself, band by band of the spectrum.

A step on sample i pushes its own outputs by its kernel block Θ_ii. The push then fades, as the
other samples take up what they have in common with i. With H = (1/n) Σⱼ Jⱼᵀ hⱼ Jⱼ the curvature of
the loss, what is left of it after a time τ is

    Rᵢ(τ) = Jᵢ e^{−Hτ} Jᵢᵀ = Σ_l (Jᵢv_l)(Jᵢv_l)ᵀ e^{−μ_l τ}.

Each term is positive semidefinite, and so is a sum of them, of any band of the spectrum. μ_l is the
rate of mode l among samples that are not i's own. In the sample's own spectrum modes are faster
than that by 1/((1 − r)(1 − r n/N)), r the leverage at that resolution. This is the effective ridge
κ = δ/(1 − r) of random design (Jacot et al. 2020; Simon et al. 2023) read as a time.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt import losses
from ntk_tt.losses import LossName

PULLING = 2  # directions, at least, in which a sample's influence on itself is followed
_ROWS = 1800  # of the kernel between them, for which there may be more
BANDS = 16
_RATIO = 2.5  # of the rates of neighbouring bands
_HEADROOM = 2.0  # of the fastest band over the fastest mode
_RIDGES = 14  # at which leverage is looked at
_LOOKS = (0, 2, 4, 8, 16, 32, 64, 128)  # steps at which a falling sample pulls
_NO_MODE = 1e-7  # of the largest eigenvalue: less is rounding


class OwnInfluence(eqx.Module):
    """Rᵢ(τ) = Σ_q blocksᵢ_q e^{−rates_q τ} of each sample, along directions of its own.

    Attributes:
        blocks: (n, q, k, k), positive semidefinite.
        rates: (q,), for a curvature of the loss of 1 an output.
        modes: (q,), how many modes of the kernel a band holds.
    """

    blocks: Float[Array, "n q k k"]
    rates: Float[Array, " q"]
    modes: Float[Array, " q"]

    def of(self, memory: Float[Array, "n q k"]) -> Float[Array, "n k"]:
        """What is left of all pushes, from those remembered in each band."""
        return jnp.einsum("nqab,nqb->na", self.blocks, memory)

    def spread(self, memory: Float[Array, "n q k"]) -> Float[Array, "n k k"]:
        """The covariance of sample i's outputs over other draws of the n samples.

        Where training has come along a mode is a sum over the samples, of independent terms.
        """
        squares = jnp.einsum("nqa,nqab,nqb->q", memory, self.blocks, memory)
        return jnp.einsum("nqab,q->nab", self.blocks, squares / jnp.maximum(self.modes, 1e-6))


def pulling_directions(
    loss: LossName, logits: Float[Array, "n c"], targets: Float[Array, "n c"]
) -> Float[Array, "n k c"]:
    """Orthonormal directions in which each sample's loss pulls its logits while they fall: in these
    its influence on itself is followed. Of a square there is one; else 2, up to 8 of few samples.

    What other samples take up along all other outputs is left out, so a push fades too slowly where
    there are many classes (docs/from-a-subset.md).
    """
    most = 1 if loss == "mse" else min(logits.shape[1] - 1, len(_LOOKS))
    count = max(PULLING, _ROWS // len(logits))
    return _pulling(loss, logits, targets.astype(logits.dtype), min(count, most))


@partial(jax.jit, static_argnums=(0, 3))
def _pulling(loss, logits, targets, count):
    def step(logits, _):
        residuals = losses.residuals(loss, logits, targets)
        return logits - 0.5 * residuals, residuals

    found = jax.lax.scan(step, logits, length=_LOOKS[-1] + 1)[1]
    pulls = found[jnp.asarray(_LOOKS)].transpose(1, 0, 2)
    return jnp.linalg.svd(pulls, full_matrices=False)[2][:, :count]


def band_rates(fastest: float) -> Float[np.ndarray, " q"]:
    """The rates of the bands, falling, for a fastest mode."""
    return _HEADROOM * fastest * _RATIO ** -np.arange(BANDS, dtype=np.float64)


def curvature_along(
    loss: LossName, logits: Float[Array, "n c"], directions: Float[Array, "n k c"]
) -> Float[Array, "n k k"]:
    """∂²ℓ/∂f² of each sample between its directions."""
    rooted = jax.vmap(
        lambda each: losses.curvature_sqrt_transpose(loss, logits, each), in_axes=1, out_axes=1
    )(directions)
    return jnp.einsum("nac,nbc->nab", rooted, rooted)


def own_influence(
    ntk: Float[Array | np.ndarray, "n k n k"],
    curvature: Float[Array | np.ndarray, "n k k"],
    rates: Float[np.ndarray, " q"] | None = None,
    *,
    share: float = 0.0,
) -> tuple[OwnInfluence, Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """The influence of n samples on themselves, from their kernel along directions of their own.

    Args:
        ntk: Θ between the directions.
        curvature: hᵢ between them, at the present outputs.
        rates: of the bands, for a curvature of 1 an output; None takes those that suit this kernel
            (`band_rates`).
        share: n/N, of the samples that are to be trained on.

    Returns:
        The influence; resolutions δ, falling; and the leverage r(δ) at each, the mean of the
        eigenvalues of [Θ(Θ + nδ h⁻¹)⁻¹]_ii, each weighted by itself. At r = 1 the samples are
        fitted one by one, and tell nothing of others.

    Cost: one eigen-decomposition of n·k numbers, about 10 (n·k)³ flops.
    """
    num_samples, width = ntk.shape[:2]
    matrix = np.asarray(ntk, np.float64).reshape(num_samples * width, -1)
    each = np.asarray(curvature, np.float64)
    mean = max(float(np.trace(each, axis1=1, axis2=2).mean()) / width, 1e-30)
    values, vectors = np.linalg.eigh(each)
    rooted = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ vectors.transpose(0, 2, 1)
    half = _on_rows(rooted, matrix)  # h^{1/2} Θ
    whole = _on_rows(rooted, half.T) / num_samples
    values, vectors = np.linalg.eigh((whole + whole.T) / 2)
    kept = values > _NO_MODE * max(values[-1], 1e-300)
    values, vectors = values[kept], vectors[:, kept]
    pushed = half.T @ vectors / np.sqrt(num_samples * values)
    pushed = pushed.reshape(num_samples, width, -1)  # Jᵢ v_l
    shares = vectors.reshape(num_samples, width, -1)
    top = float(values[-1]) if len(values) else 1e-30
    rates = band_rates(top / mean) if rates is None else rates
    ridges = top * np.geomspace(3.0, 1e-6, _RIDGES)
    leverage = np.asarray([_leverage(shares, values, ridge) for ridge in ridges])
    slower = (1 - leverage) * (1 - share * leverage)
    of_modes = values * np.interp(np.log(values), np.log(ridges[::-1]), slower[::-1])
    nearest = np.abs(np.log(of_modes / mean)[:, None] - np.log(rates)).argmin(1)
    blocks = np.zeros((num_samples, len(rates), width, width))
    for band in np.unique(nearest):
        mine = pushed[:, :, nearest == band]
        blocks[:, band] = mine @ mine.transpose(0, 2, 1)
    own = matrix.reshape(num_samples, width, num_samples, width)
    own = np.einsum("iaib->iab", own)
    # what is seen by no other sample at all does not fade
    blocks[:, -1] += _positive(own - blocks.sum(1))
    seen = np.einsum("nab,nqba->q", each, blocks) / num_samples
    found = OwnInfluence(
        jnp.asarray(blocks, jnp.float32),
        jnp.asarray(rates, jnp.float32),
        jnp.asarray(seen / (rates * mean), jnp.float32),
    )
    return found, ridges / mean, leverage


def _on_rows(blocks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A block-diagonal matrix times a matrix."""
    num_samples, width = blocks.shape[:2]
    return (blocks @ matrix.reshape(num_samples, width, -1)).reshape(num_samples * width, -1)


def _leverage(shares: np.ndarray, values: np.ndarray, ridge: float) -> float:
    blocks = (shares * (values / (values + ridge))) @ shares.transpose(0, 2, 1)
    total = np.trace(blocks, axis1=1, axis2=2).sum()
    return float(min((blocks * blocks).sum() / max(total, 1e-300), 1 - 1e-6))


def _positive(blocks: np.ndarray) -> np.ndarray:
    """The nearest positive semidefinite blocks."""
    values, vectors = np.linalg.eigh(blocks)
    return (vectors * np.maximum(values, 0)[:, None]) @ vectors.transpose(0, 2, 1)
