"""Which samples each step of the optimiser takes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.runtime.memory import available_bytes, refuse

# of each place in the order of the data: its index, and copies while the order is drawn and cut
_ORDER_BYTES = 16


def checked_batches(
    batches: Int[Array | np.ndarray, "t b"], num_steps: int, num_samples: int
) -> Int[Array, "t b"]:
    """Raises ValueError unless there are indices of samples for each step."""
    indices = jnp.asarray(batches)
    if (
        indices.ndim != 2
        or len(indices) != num_steps
        or bool((indices < 0).any())
        or bool((indices >= num_samples).any())
    ):
        raise ValueError(
            f"batches: must hold (num_steps={num_steps}, B) indices below {num_samples}, got shape "
            f"{indices.shape}"
        )
    return indices


def batch_indices(
    num_samples: int, optimizer: OptimizerConfig, num_steps: int, key: Key[Array, ""]
) -> Int[Array, "t b"] | None:
    """The samples of each step, (T, B); None for the full batch."""
    size = optimizer.checked_batch_size(num_samples)
    if optimizer.is_full_batch(num_samples):
        return None
    if (needed := _ORDER_BYTES * num_steps * size) > (usable := available_bytes()):
        refuse(
            f"the orders of {num_steps} batches of {size}",
            needed,
            usable,
            "take fewer steps or smaller batches",
        )
    if optimizer.sampling == "replacement":
        return jax.random.randint(key, (num_steps, size), 0, num_samples)
    per_epoch = num_samples // size
    epochs = -(-num_steps // per_epoch)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_samples))(
        jax.random.split(key, epochs)
    )
    return orders[:, : per_epoch * size].reshape(-1, size)[:num_steps]


def noise_variance(num_samples: int, optimizer: OptimizerConfig) -> float:
    """Variance of the mean over a batch, in units of the variance over samples: 1/B, times
    (N−B)/(N−1) without replacement.
    """
    size = optimizer.checked_batch_size(num_samples)
    if optimizer.is_full_batch(num_samples):
        return 0.0
    correction = (num_samples - size) / (num_samples - 1) if optimizer.sampling == "epoch" else 1.0
    return correction / size
