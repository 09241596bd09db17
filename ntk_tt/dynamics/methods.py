"""All methods behind one call, from exact to approximate."""

from typing import Literal, get_args

from jaxtyping import Array, Key

from ntk_tt.dynamics.closed_form import solve_closed_form
from ntk_tt.dynamics.ode import solve_ode
from ntk_tt.dynamics.optimizer_replay import replay
from ntk_tt.dynamics.sde import Noise, solve_sde
from ntk_tt.dynamics.trajectory import Trajectory
from ntk_tt.optimizer import OptimizerConfig, check_sgd
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.problem import Problem

Method = Literal["replay", "ode", "sde", "sde-diagonal", "sde-diagonal-constant", "closed-form"]
_NOISES: dict[str, Noise] = {
    "sde": "full",
    "sde-diagonal": "diagonal",
    "sde-diagonal-constant": "diagonal-constant",
}


def simulate(
    problem: Problem,
    optimizer: OptimizerConfig,
    num_steps: int,
    *,
    method: Method = "replay",
    key: Key[Array, ""] | None = None,
    record_every: int = 1,
    save_logits: bool = False,
    beside: Problem | None = None,
    progress: Progress = silent,
) -> Trajectory:
    """The training curve of the linearised network by any of the methods; see each one's docstring.

    | method | exact for | leaves out | cost a step |
    |---|---|---|---|
    | `replay` | every SGD setting | nothing | products with a batch's rows |
    | `sde` | small steps, Gaussian noise of the full covariance | large steps, momentum's lag | one
    product with Θ |
    | `sde-diagonal`, `sde-diagonal-constant` | (the paper's) | the same, and correlations of the
    noise | 2·N·C·D' flops |
    | `ode` | small steps, full batch | noise as well | adaptive |
    | `closed-form` | the ODE with `mse` | the same | one eigen-decomposition |

    With streamed features (`ntk_tt.kernels.streaming`) only `replay` works; the others run inside
    `jit`. A problem with a real head is replayed too, and has no other
    method. `progress` is called on the way of a replay; the others are one compiled program.
    `beside` is for a replay, see there.

    Raises:
        ValueError: unknown method, or what the method raises.
    """
    if method == "replay":
        return replay(
            problem,
            optimizer,
            num_steps,
            key=key,
            record_every=record_every,
            save_logits=save_logits,
            beside=beside,
            progress=progress,
        )
    check_sgd(optimizer, method)
    frozen = problem.frozen(method)
    match method:
        case "ode":
            return solve_ode(
                frozen, optimizer, num_steps, record_every=record_every, save_logits=save_logits
            )
        case "closed-form":
            return solve_closed_form(
                frozen, optimizer, num_steps, record_every=record_every, save_logits=save_logits
            )
        case "sde" | "sde-diagonal" | "sde-diagonal-constant":
            return solve_sde(
                frozen,
                optimizer,
                num_steps,
                key=key,
                noise=_NOISES[method],
                record_every=record_every,
                save_logits=save_logits,
            )
    raise ValueError(f"method: unknown {method!r}; known: {', '.join(get_args(Method))}")


def is_random(method: Method, optimizer: OptimizerConfig, num_samples: int) -> bool:
    """Whether another key gives another curve."""
    return method not in ("ode", "closed-form") and not optimizer.is_full_batch(num_samples)
