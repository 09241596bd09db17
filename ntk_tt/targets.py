"""What is learned: the losses' names, targets from labels, and when an output counts as wrong.
Shared by prediction and truth.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_tt.runtime.limits import is_fraction

LossName = Literal["ce", "mse"]

# integers (N,) or real numbers (N, C); `encode_targets` says what is wrong with others
Labels = Array | np.ndarray


def check_loss(loss: str) -> None:
    if loss not in get_args(LossName):
        raise ValueError(
            f"loss: unknown {loss!r}; give 'ce' (softmax cross-entropy) or 'mse' (½‖f − y‖²)"
        )


def check_outputs(loss: str, num_outputs: int) -> None:
    """Raises ValueError for a loss that is unknown, or constant with so many outputs."""
    check_loss(loss)
    if loss == "ce" and num_outputs == 1:
        raise ValueError("loss: cross-entropy needs at least two outputs; use loss='mse' with one")


def encode_targets(
    labels: Labels, num_outputs: int, dtype=jnp.float32, *, loss: str = "mse"
) -> Float[Array, "n c"]:
    """Integer labels as one-hot rows; real-valued targets as they are.

    Raises:
        ValueError: a label outside 0 … C−1, targets of another shape, NaN among them, or, for
            cross-entropy, rows that are no probabilities.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        if labels.ndim != 2 or labels.shape[1] != num_outputs:
            raise ValueError(
                f"labels: real targets must have shape (N, {num_outputs}) like the logits, got "
                f"{labels.shape} of {labels.dtype}; "
                "classes are integers of shape (N,)"
            )
        try:
            targets = labels.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"labels: must be integers or real numbers, got {labels.dtype}"
            ) from None
        if not np.isfinite(targets).all():
            raise ValueError("labels: the targets hold NaN or infinity; remove those samples")
        if loss == "ce" and not (
            (targets >= 0).all() and np.allclose(targets.sum(1), 1, atol=1e-3)
        ):
            raise ValueError(
                "labels: real targets for cross-entropy must be probabilities, at least 0 and with "
                "a sum of 1 for each sample; give classes, or loss='mse'"
            )
        return jnp.asarray(targets, dtype)
    if labels.ndim != 1:
        raise ValueError(f"labels: integer labels must have shape (N,), got {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_outputs:
        raise ValueError(
            f"labels: must lie in 0 … {num_outputs - 1} (the network has {num_outputs} outputs), "
            f"got {labels.min()} … {labels.max()}"
        )
    return jax.nn.one_hot(labels, num_outputs, dtype=dtype)


def check_smoothing(label_smoothing: int | float, loss: str) -> None:
    """Raises ValueError for a share that is none, or one that the loss does not know."""
    if not is_fraction(label_smoothing):
        raise ValueError(
            f"label_smoothing: must lie in [0, 1), got {label_smoothing!r}; 0.1 is usual, and 0 is "
            "none"
        )
    if label_smoothing and loss != "ce":
        raise ValueError(
            f"label_smoothing: belongs to cross-entropy, got {label_smoothing} with loss {loss!r}; "
            "leave it out, or give the targets themselves"
        )


def smoothed(
    labels: Labels, num_outputs: int, label_smoothing: int | float, *, loss: str = "ce"
) -> np.ndarray:
    """(1 − ε) y + ε/C, (N, C): labels of which a share ε is spread evenly over all classes
    (Szegedy et al. 2016), as `optax.smooth_labels` and PyTorch have it.

    With ε = 0 the labels as they are. Soft targets go into value, gradient and curvature of the
    loss as hard ones do, so whatever takes labels is as exact with them.

    Raises:
        ValueError: see `check_smoothing` and `encode_targets`.
    """
    check_smoothing(label_smoothing, loss)
    if not label_smoothing:
        return np.asarray(labels)
    hard = np.asarray(encode_targets(labels, num_outputs, loss=loss), np.float64)
    return (1 - label_smoothing) * hard + label_smoothing / num_outputs


def wrong(logits: Float[Array, "n c"], targets: Float[Array, "n c"]) -> Bool[Array, " n"]:
    """Which samples are classified wrongly: by the largest logit, or by the sign (of which 0 is
    one) where there is one output.
    """
    if logits.shape[-1] == 1:
        return (jnp.sign(logits) != jnp.sign(targets))[:, 0]
    return logits.argmax(-1) != targets.argmax(-1)


def least_loss(targets: Float[np.ndarray, "n c"], loss: str) -> float:
    """The loss of outputs that are the targets themselves: the mean entropy of soft ones for `ce`,
    else 0.
    """
    if loss == "mse":
        return 0.0
    shares = np.asarray(targets, np.float64)
    return float(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1).mean())


def chance_loss(targets: Float[np.ndarray, "n c"], loss: str) -> float:
    """The least loss of outputs that are the same for all samples: the entropy of the classes'
    shares (ln C where they are even), or half the variance.
    """
    mean = np.asarray(targets, np.float64).mean(0)
    if loss == "mse":
        return float(0.5 * np.square(np.asarray(targets, np.float64) - mean).sum(-1).mean())
    return float(-(mean[mean > 0] * np.log(mean[mean > 0])).sum())
