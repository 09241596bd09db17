"""Training written out from its definition: numpy in double precision and optax's optimisers, no
code of the package.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree


class Dense(NamedTuple):
    """A network at w₀: logits (N, C), Jacobian (N, C, D) and weights (D,), in double precision."""

    logits: np.ndarray
    jacobian: np.ndarray
    weights: np.ndarray


def dense(apply: Callable, params: Any, inputs) -> Dense:
    """By `jax.jacrev` of the logits of all samples at once."""
    flat, restore = ravel_pytree(params)

    def logits(weights):
        return apply(restore(weights), inputs)

    found = jax.jit(lambda weights: (logits(weights), jax.jacrev(logits)(weights)))(flat)
    return Dense(*(np.asarray(each, np.float64) for each in (*found, flat)))


def one_hot(labels, num_outputs: int) -> np.ndarray:
    return np.eye(num_outputs)[np.asarray(labels)]


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def residuals(loss: str, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (softmax(logits) if loss == "ce" else logits) - targets


def mean_loss(loss: str, logits: np.ndarray, targets: np.ndarray) -> float:
    if loss == "mse":
        return float(0.5 * ((logits - targets) ** 2).sum() / len(logits))
    top = logits.max(-1, keepdims=True)
    return float(
        (np.log(np.exp(logits - top).sum(-1)) + top[:, 0] - (targets * logits).sum(-1)).mean()
    )


def error_rate(logits: np.ndarray, targets: np.ndarray) -> float:
    """By the largest logit; by the sign where there is one output."""
    if logits.shape[1] == 1:
        return float((logits * targets <= 0).mean())
    return float((logits.argmax(-1) != targets.argmax(-1)).mean())


def train(
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray],
    start: np.ndarray,
    batches: Sequence[np.ndarray],
    *,
    rate: float | Callable,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[np.ndarray]:
    """The weights before and after each step of optax's SGD; `gradient(weights, batch)` is that of
    the batch's mean loss.
    """
    chain = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum or None, nesterov=nesterov),
    )
    weights, found = np.asarray(start, np.float64), [np.asarray(start, np.float64)]
    state, update = chain.init(jnp.asarray(weights)), jax.jit(chain.update)
    for batch in batches:
        updates, state = update(jnp.asarray(gradient(weights, batch)), state, jnp.asarray(weights))
        weights = weights + np.asarray(updates, np.float64)
        found.append(weights)
    return found


def train_linear(
    network: Dense, targets: np.ndarray, loss: str, batches: Sequence[np.ndarray], **setting
) -> np.ndarray:
    """Logits (T+1, N, C) before and after each step of f = f₀ + J (w − w₀)."""

    def logits(weights, samples=slice(None)):
        return network.logits[samples] + network.jacobian[samples] @ (weights - network.weights)

    def gradient(weights, batch):
        return np.einsum(
            "ncd,nc->d",
            network.jacobian[batch],
            residuals(loss, logits(weights, batch), targets[batch]),
        ) / len(batch)

    return np.stack(
        [logits(weights) for weights in train(gradient, network.weights, batches, **setting)]
    )


def orders(
    num_samples: int, batch_size: int | None, num_steps: int, sampling: str = "epoch", seed: int = 0
) -> np.ndarray:
    """(T, B): the full batch, a new order each epoch without what does not fill a batch, or samples
    drawn one by one.
    """
    if batch_size is None:
        return np.tile(np.arange(num_samples), (num_steps, 1))
    rng = np.random.default_rng(seed)
    if sampling == "replacement":
        return np.stack([rng.integers(0, num_samples, batch_size) for _ in range(num_steps)])
    found = []
    while len(found) < num_steps:
        order = rng.permutation(num_samples)
        found += [
            order[start : start + batch_size]
            for start in range(0, num_samples, batch_size)
            if start + batch_size <= num_samples
        ]
    return np.stack(found[:num_steps])


def moment_radius(
    rate: float, mean: float, variance: float, momentum: float, nesterov: bool
) -> float:
    """Spectral radius of E[M ⊗ M], (x, a) -> M (x, a) one optimiser step at curvature h, M =
    constant + h·slope.
    """
    if nesterov:
        constant, slope = (
            [[1, -rate * momentum**2], [0, momentum]],
            [[-rate * (1 + momentum), 0], [1, 0]],
        )
    else:
        constant, slope = [[1, -rate * momentum], [0, momentum]], [[-rate, 0], [1, 0]]
    average = np.asarray(constant) + mean * np.asarray(slope)
    moments = np.kron(average, average) + variance * np.kron(slope, slope)
    return float(np.abs(np.linalg.eigvals(moments)).max())
