"""Replay as a loop in Python, for kernels that cannot live inside `jit`: one pass over the features
a step, for all settings.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_tt import losses
from ntk_tt.dynamics.sgd import sgd_step
from ntk_tt.dynamics.trajectory import Trajectory, record_steps
from ntk_tt.kernels.operators import Respond
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.linear import LinearizedProblem, State, decayed


def train(
    problem: LinearizedProblem,
    optimizers: Sequence[OptimizerConfig],
    num_steps: int,
    batches: Int[Array | np.ndarray, "t b"] | None,
    *,
    record_every: int,
    save_logits: bool,
    progress: Progress = silent,
) -> tuple[Trajectory, ...]:
    """The loop of `replay_many` and of `replay` with streamed features: all settings see the same
    batches (None: all samples).
    """
    steps = record_steps(num_steps, record_every)
    recorded = set(steps.tolist())
    dtype = problem.initial_logits.dtype
    rates = jnp.asarray(
        np.stack([optimizer.learning_rates(num_steps) for optimizer in optimizers], 1), dtype
    )
    settings = tuple(
        jnp.asarray(
            [getattr(optimizer, name) for optimizer in optimizers],
            bool if name == "nesterov" else dtype,
        )
        for name in ("momentum", "weight_decay", "nesterov")
    )
    state = jax.tree.map(
        lambda leaf: jnp.zeros((len(optimizers), *leaf.shape), leaf.dtype), problem.zero()
    )
    velocity, order = state, None if batches is None else np.asarray(batches)
    data = tuple(
        np.asarray(array)
        for array in (problem.initial_logits, problem.weight_logits, problem.targets)
    )

    def respond(num_samples: int, *, pull: bool, seen: np.ndarray | None = None) -> Respond:
        """The residuals of what a sweep passes by at the present state; the logits go into
        `seen`.
        """
        decay = state.decay

        def of_part(samples, changes):
            logits, residuals = _residuals(
                problem.loss, num_samples, *(array[samples] for array in data), decay, changes
            )
            if seen is not None:
                seen[:, samples] = logits
            return residuals if pull else None

        return of_part

    curves, saved, pulled = [], [], None
    for step in range(num_steps + 1):
        is_last = step == num_steps
        if order is None or step in recorded:
            seen = np.empty((len(optimizers), *data[0].shape), dtype) if step in recorded else None
            pulled = problem.kernel.sweep(
                state.kernel_state,
                respond(problem.num_samples, pull=order is None and not is_last, seen=seen),
            )
            if seen is not None:
                curves.append(_metrics(problem.loss, seen, problem.targets))
                saved += [seen] if save_logits else []
        if is_last:
            break
        if order is not None:
            pulled = problem.kernel.sweep(
                state.kernel_state, respond(order.shape[1], pull=True), order[step]
            )
        state, velocity = _advance(state, velocity, pulled, rates[step], *settings)
        progress(step + 1, num_steps)
    loss, error = (np.stack([np.asarray(curve[which]) for curve in curves]) for which in (0, 1))
    return tuple(
        Trajectory(
            steps,
            loss[:, index],
            error[:, index],
            np.stack([logits[index] for logits in saved]) if save_logits else None,
        )
        for index in range(len(optimizers))
    )


@partial(jax.jit, static_argnums=(0, 1))
def _residuals(
    loss,
    num_samples,
    initial: Float[Array, "b c"],
    weights: Float[Array, "b c"],
    targets: Float[Array, "b c"],
    decay: Float[Array, " s"],
    changes: Float[Array, "s b c"],
) -> tuple[Float[Array, "s b c"], Float[Array, "s b c"]]:
    """Logits and ∂L/∂f of some samples, in each setting."""
    logits = initial + changes + decay[:, None, None] * weights
    return logits, jax.vmap(lambda f: losses.mean_residuals(loss, f, targets, num_samples))(logits)


@partial(jax.jit, static_argnums=0)
def _metrics(
    loss, logits: Float[Array, "s n c"], targets: Float[Array, "n c"]
) -> tuple[Float[Array, " s"], Float[Array, " s"]]:
    return jax.vmap(lambda f: (losses.mean_loss(loss, f, targets), losses.error_rate(f, targets)))(
        logits
    )


@jax.jit
@jax.vmap
def _advance(
    state: State, velocity: State, pulled, rate, momentum, weight_decay, nesterov
) -> tuple[State, State]:
    return sgd_step(state, velocity, decayed(pulled, state, weight_decay), rate, momentum, nesterov)
