"""The optax chain of an optimiser, built from its form and the numbers in it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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


class SgdNumbers(NamedTuple):
    """Of a chain that is SGD: η or its schedule, m, Nesterov's or not, and the L2 coefficient λ."""

    learning_rate: float | Callable
    momentum: float
    nesterov: bool
    weight_decay: float


_PROBED = 12  # steps on which a chain is compared with the SGD that it may be
_SIZES = (1e-3, 1.0, 1e4)  # of their gradients: what clips shows itself
_LOOKS = (0, 1, 3, 10, 100, 1000, 10**4, 10**6)  # steps at which a schedule is looked at


def sgd_numbers(transformation: Transformation) -> SgdNumbers | None:
    """The numbers of a chain that is plain SGD, such as `optax.sgd(0.01, 0.9)` or `optax.sgd(
    schedule)`, behind `optax.add_decayed_weights` or not; None for any other.

    Read off its answers to an impulse and to weights alone, then compared step by step, on
    gradients of many sizes and at many steps of its schedule. A chain that keeps more than a
    momentum and, after it, the count of a schedule (a mask, a second moment) is none.
    """
    chain = _plain(transformation)
    try:
        kept = _kept(chain.init(_probe(0.0)))
        if kept is None:
            return None
        chain = chain._replace(update=jax.jit(chain.update))
        looks = _LOOKS if optax.ScaleByScheduleState in kept else _LOOKS[:1]
        rates = [_first_answer(chain, look) for look in looks]
        if not np.isfinite(rates).all() or min(rates) < 0:
            return None
        highest = looks[int(np.argmax(rates))]
        found = _read_off(chain, highest)
        if found is None or not all(_is_that(chain, found, look, highest) for look in looks):
            return None
        if len(looks) == 1:
            return found
        return found._replace(learning_rate=_schedule(transformation, found, highest))
    except Exception:  # whatever it is, it does not take parameters as SGD does
        return None


def _probe(value: float) -> dict[str, Array]:
    return {"vector": jnp.full(3, value), "matrix": jnp.full((2, 2), value)}


def _kept(state: Any) -> list[type] | None:
    """What a chain keeps, in order: a momentum, and behind it the count of a schedule, at most;
    None where it is more, or anything else.
    """
    if isinstance(state, optax.EmptyState):
        return []
    if isinstance(state, optax.TraceState | optax.ScaleByScheduleState):
        return [type(state)]
    if type(state) is not tuple:
        return None
    parts = [_kept(part) for part in state]
    if None in parts:
        return None
    found = [kind for part in parts for kind in part or ()]
    # a schedule before the momentum would be in what is remembered
    allowed = [optax.TraceState, optax.ScaleByScheduleState]
    is_allowed = found in ([], allowed[:1], allowed[1:], allowed)
    return found if is_allowed else None


def _at(state: Any, step: Any) -> Any:
    """A fresh state, after so many updates as its schedule counts them."""

    def is_count(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda part: part._replace(count=jnp.asarray(step, jnp.int32)) if is_count(part) else part,
        state,
        is_leaf=is_count,
    )


def _first_answer(chain: optax.GradientTransformation, step: Any) -> Any:
    """How far the first gradient of 1 moves a weight of 0, at a step of the schedule."""
    params = _probe(0.0)
    updates, _ = chain.update(_probe(1.0), _at(chain.init(params), step), params)
    return -jax.tree.leaves(updates)[0].reshape(-1)[0]


def _schedule(transformation: Transformation, found: SgdNumbers, highest: int) -> Callable:
    """η of any step: answers of the chain, which are all in proportion to it."""
    chain = _plain(transformation)
    given: Any = found.learning_rate
    share = float(given) / float(_first_answer(chain, highest))

    def rate(step: Any) -> Any:
        return share * _first_answer(chain, step)

    return rate


def _read_off(chain: optax.GradientTransformation, step: int) -> SgdNumbers | None:
    """From three answers to a gradient of 1 and then none, and from one to weights of 1 alone, all
    at one step of the schedule.
    """

    def answers(gradients: tuple[float, ...], weights: float) -> list[float]:
        params, found = _probe(weights), []
        state = chain.init(params)
        for gradient in gradients:
            updates, state = chain.update(_probe(gradient), _at(state, step), params)
            found.append(-float(np.asarray(jax.tree.leaves(updates)[0]).reshape(-1)[0]))
        return found

    first, second, third = answers((1.0, 0.0, 0.0), 0.0)
    if not first > 0:
        return None
    momentum = third / second if second else 0.0
    nesterov = momentum > 0 and abs(second - momentum * first) > 1e-4 * second
    rate = second / momentum**2 if nesterov else first
    decay = answers((0.0,), 1.0)[0] / first
    rounded = (float(f"{number:.6g}") for number in (rate, momentum, decay))
    rate, momentum, decay = rounded
    if not (0 < rate < np.inf and 0 <= momentum < 1 and 0 <= decay < np.inf):
        return None
    return SgdNumbers(rate, momentum, nesterov, decay)


def _is_that(
    chain: optax.GradientTransformation, found: SgdNumbers, first: int, highest: int
) -> bool:
    """Whether both answer alike to random gradients at random weights, from a step of the schedule
    on; `found` has the rate of the step `highest`.
    """
    rng = np.random.default_rng(0)
    given: Any = found.learning_rate
    whole = float(_first_answer(chain, highest))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), _probe(0.0))
    own = optax.chain(
        optax.add_decayed_weights(found.weight_decay),
        optax.sgd(1.0, found.momentum or None, found.nesterov),
    )
    own = own._replace(update=jax.jit(own.update))
    states = [_at(chain.init(params), first), own.init(params)]
    for step in range(_PROBED):
        size = _SIZES[step % len(_SIZES)]
        gradient = jax.tree.map(
            lambda leaf, size=size: jnp.asarray(size * rng.normal(size=leaf.shape)), params
        )
        rate = given * float(_first_answer(chain, first + step)) / whole
        updates = []
        for index, (each, factor) in enumerate(((chain, 1.0), (own, rate))):
            update, states[index] = each.update(gradient, states[index], params)
            leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(update)]
            updates.append(factor * np.concatenate(leaves))
        scale = np.abs(updates[1]).max()
        if not np.allclose(*updates, rtol=1e-4, atol=1e-5 * scale):
            return False
    return True
