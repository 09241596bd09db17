"""How far a network is from its linearisation after a few real steps."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_tt.jacobian.network import logits_and_tangent
from ntk_tt.losses import LossName
from ntk_tt.models.former_network import takes_former_network
from ntk_tt.models.model import Model
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.runtime import input_trees
from ntk_tt.runtime.input_trees import Inputs
from ntk_tt.training import finetune

RESIDUAL_STEPS = 5
RESIDUAL_SAMPLES = 64


class Residual(NamedTuple):
    """Of `linearization_residual`.

    Attributes:
        value: the residual after the few steps.
        expected: `value` times how much further the prediction moves the sample's logits until step
            T.
        seconds_per_sample: training time a sample and step, without compilation.
        compile_seconds: of these steps.
    """

    value: float
    expected: float
    seconds_per_sample: float
    compile_seconds: float = 0.0


@takes_former_network
def linearization_residual(
    model: Model,
    inputs: Inputs,
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    optimizer: OptimizerConfig,
    *,
    final_logits: Float[Array | np.ndarray, "n c"] | None = None,
    loss: LossName = "ce",
    num_steps: int = RESIDUAL_STEPS,
    num_samples: int = RESIDUAL_SAMPLES,
    seed: int = 0,
) -> Residual:
    """‖f(w_k) − f₀ − J(w_k − w₀)‖ / ‖f(w_k) − f₀‖ after k real steps on a random sample of the
    data.

    The sample is at most `num_samples` large and stands for the full batch, so this costs k small
    batches whatever N is. The residual is of second order in the displacement, so relative to it of
    first order: it is expected to grow with the distance that the logits move, which `final_logits`
    (predicted, at step T) give.

    Raises:
        ValueError: an argument out of range.
    """
    given = input_trees.num_samples(inputs)
    count = min(num_samples, given)
    chosen = np.sort(np.random.default_rng(seed).choice(given, count, replace=False))
    x, y = _chosen(inputs, chosen), np.asarray(labels)[chosen]
    batch_size = (
        None
        if optimizer.batch_size is None or optimizer.batch_size >= count
        else optimizer.batch_size
    )
    setting = dataclasses.replace(optimizer, batch_size=batch_size)
    run = finetune(model, x, y, setting, num_steps, loss=loss, seed=seed, record_every=num_steps)
    seconds = run.step_seconds / (batch_size or count)
    initial, tangent = logits_and_tangent(
        model.apply, model.params, x, jax.tree.map(jnp.subtract, run.params, model.params)
    )
    moved = np.asarray(jax.jit(model.apply)(run.params, x) - initial, np.float64)
    with np.errstate(over="ignore"):  # that is no distance
        distance = np.linalg.norm(moved)
    if not np.isfinite(distance):
        return Residual(np.inf, np.inf, seconds, run.compile_seconds)
    value = float(
        np.linalg.norm(moved - np.asarray(tangent)) / max(distance, np.finfo(np.float32).tiny)
    )
    growth = 1.0
    if final_logits is not None:
        growth = max(
            1.0,
            float(
                np.linalg.norm(np.asarray(final_logits)[chosen] - np.asarray(initial))
                / max(distance, np.finfo(np.float32).tiny)
            ),
        )
    return Residual(value, value * growth, seconds, run.compile_seconds)


def _chosen(inputs: Inputs, rows: np.ndarray) -> Inputs:
    found = input_trees.take(input_trees.placed(inputs), rows)
    return input_trees.cut(found)
