"""The optax chain of an optimiser, built from its form and the numbers in it."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import optax
from jaxtyping import Array, PyTree

OptimizerName = Literal["sgd", "adam", "adamw", "lion", "rmsprop", "adagrad"]
Transformation = optax.GradientTransformation | optax.MultiSteps

DECOUPLED = ("adamw", "lion")
# what each of them does not have
HAS_NOT: dict[str, tuple[str, ...]] = {
    "sgd": ("betas", "eps"),
    "adam": ("momentum", "nesterov"),
    "adamw": ("momentum", "nesterov"),
    "lion": ("momentum", "nesterov", "eps"),
    "rmsprop": ("betas",),
    "adagrad": ("momentum", "nesterov", "betas"),
}


@dataclasses.dataclass(frozen=True)
class ChainKind:
    """The form of an optimiser, all that its chain is built of but numbers."""

    name: OptimizerName
    has_momentum: bool
    nesterov: bool
    clips: bool
    transformation: Transformation | None
    averages: bool = False


class WeightAverage(NamedTuple):
    """What an optax chain keeps of `OptimizerConfig.weight_ema`: v, a tree like the parameters."""

    average: PyTree


def weights_read(opt_state: PyTree, params: PyTree) -> PyTree:
    """The weights at which loss and error are read: the average that the chain keeps, else the
    parameters themselves.
    """
    found = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, WeightAverage))
    return next((part.average for part in found if isinstance(part, WeightAverage)), params)


def _weight_average(decay: float | Array) -> optax.GradientTransformation:
    """Keeps v; last in a chain, where the updates are those of the parameters."""

    def init(params):
        return WeightAverage(params)

    def update(updates, state, params=None):
        assert params is not None
        moved = optax.apply_updates(params, updates)
        return updates, WeightAverage(
            jax.tree.map(
                lambda average, at: (decay * average + (1 - decay) * at).astype(average.dtype),
                state.average,
                moved,
            )
        )

    return optax.GradientTransformation(init, update)


def chain_of(
    kind: ChainKind,
    numbers: dict[str, Any],
    rates: Array,
    scale: float | Array = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """The chain of a form with these numbers (`OptimizerConfig.kind_and_numbers`) and these rates,
    one a step; all but the form may be traced.
    """

    def rate(count):
        return scale * rates[count]

    after = [_weight_average(numbers["weight_ema"])] if kind.averages else []
    if kind.transformation is not None:
        return optax.chain(_plain(kind.transformation), optax.scale_by_schedule(rate), *after)
    own = {name: numbers[name] for name in ("b1", "b2", "eps") if name in numbers}
    if kind.name in DECOUPLED:
        own["weight_decay"] = numbers["weight_decay"]
    if "momentum" not in HAS_NOT[kind.name]:
        own |= {
            "momentum": numbers["momentum"] if kind.has_momentum else None,
            "nesterov": kind.nesterov,
        }
    named = getattr(optax, kind.name)(rate, **own)
    before = [optax.clip_by_global_norm(numbers["clip_norm"])] if kind.clips else []
    if kind.name not in DECOUPLED:
        before.append(optax.add_decayed_weights(numbers["weight_decay"]))
    return optax.chain(*before, named, *after)


def check_transformation(value: Any) -> None:
    """Raises ValueError where something is no optax transformation."""
    if not isinstance(value, Transformation):
        raise ValueError(
            f"transformation: must be an optax.GradientTransformation, got {type(value).__name__}; "
            "give one such as optax.adamw(1e-4)"
        )


def _plain(transformation: Transformation) -> optax.GradientTransformation:
    if isinstance(transformation, optax.MultiSteps):
        return transformation.gradient_transformation()
    return transformation
