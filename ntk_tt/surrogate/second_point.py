"""The second expansion point: where training is predicted to lead, and the Jacobian there."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_tt.features.kept_pass import KeptPass, complete_rows
from ntk_tt.features.sampled_pass import Entries, sampled_pass
from ntk_tt.features.store import FeatureStore
from ntk_tt.models.linear_head import Head
from ntk_tt.runtime.input_trees import Inputs, num_samples, take
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.runtime.sharding import whole
from ntk_tt.surrogate.backbone import Backbone
from ntk_tt.surrogate.bend import Bend
from ntk_tt.surrogate.sharpness import largest_curvature
from ntk_tt.surrogate.small_network import SmallNetwork
from ntk_tt.targets import least_loss

# The states of a surrogate on an optimiser's way, equally many steps apart.
Way = Callable[[SmallNetwork], Iterable[PyTree]]

# the second expansion point is where the predicted loss has fallen to this share of its start
ANCHOR_FALL = 0.25
_FLOW_RATE = 1.0  # of 1/λ, without momentum: near to gradient flow, and stable until λ has doubled
# most steps of the path to the second point, and between two looks at its loss
_FLOW_STEPS, _FLOW_CHUNK = 600, 5
_HALVINGS = 4  # of the way to the second point, at most


class NoSecondPoint(ValueError):
    """The network has no finite derivatives where its linear model leads."""


def with_bend(
    small: SmallNetwork,
    backbone: Callable[[], Backbone],
    entries: Entries,
    inputs: Inputs,
    *,
    fall: float = ANCHOR_FALL,
    way: Way | None = None,
    kept: KeptPass | None = None,
    block_size: int | None = None,
    progress: Progress = silent,
) -> SmallNetwork:
    """The surrogate with second-order terms, by a pass where the predicted loss has fallen to a
    share of its start.

    `way` is that of the optimiser; without one it is plain gradient descent, along which SGD goes
    at every rate and momentum. Where the network has no finite outputs so far out, as after an
    unstable start, the second point is taken nearer. `backbone` is called where something is still
    to be computed.
    """
    directions = whole(small.directions)[: num_samples(inputs)]
    point = functools.cache(
        lambda: _second_point(small, backbone(), entries, inputs, directions, fall, way)
    )
    metric, store = _found(kept, small, lambda: point()[1])
    if not metric.any():
        return small  # a dead backbone does not move

    def look(rows: slice, progress: Progress) -> Float[Array, "b k d"]:
        found = sampled_pass(
            backbone().apply,
            point()[0],
            entries,
            take(inputs, rows),
            directions[rows],
            block_size=block_size,
            mesh=small.mesh,
            progress=progress,
        )
        return found.jacobian

    if store is None:
        return _bent(small, look(slice(0, num_samples(inputs)), progress), metric)
    return _bent(small, complete_rows(store, look, progress), metric)


def _found(
    kept: KeptPass | None, small: SmallNetwork, displacement: Callable[[], np.ndarray]
) -> tuple[Float[np.ndarray, " d"], FeatureStore | None]:
    """How far the sampled entries have moved, and the store of the pass there: None where it is
    neither kept whole nor to be.
    """
    if kept is None or kept.second is None:
        return displacement(), None
    record = kept.record(kept.second)
    count, rows, width = small.jacobian.shape
    store = kept.store(kept.second, count, rows, width, small.dtype)
    if not kept.writes and (record is None or not store.complete):
        return displacement(), None
    if record is None:
        record = {"metric": displacement()}
        kept.keep(kept.second, record)
    return record["metric"], store


def _second_point(
    small: SmallNetwork,
    backbone: Backbone,
    entries: Entries,
    inputs: Inputs,
    directions: Float[np.ndarray, "n k f"],
    fall: float,
    way: Way | None,
) -> tuple[PyTree, Float[np.ndarray, " d"]]:
    """The parameters there, and how far the sampled entries have moved; zeros where nothing
    does.
    """
    state, pushed = path_to(small, fall) if way is None else path_along(small, way, fall)
    cotangents = np.einsum("nk,nkf->nf", whole(pushed)[: num_samples(inputs)], directions)
    displacement = backbone.pull(backbone.params, inputs, cotangents)
    if backbone.head is not None:
        displacement = _without(displacement, backbone.head)
    if way is not None:
        displacement = _as_moved(small, state, displacement, entries)
    moved = backbone.params
    if not np.any(_sampled_entries(displacement, entries)):
        return moved, _sampled_entries(displacement, entries).astype(small.dtype)
    few = take(inputs, slice(4 * backbone.BLOCK))
    for _ in range(_HALVINGS):
        moved = jax.tree.map(
            lambda at, by: jnp.asarray((np.asarray(at) + np.asarray(by)).astype(at.dtype)),
            backbone.params,
            displacement,
        )
        if np.isfinite(np.asarray(backbone.outputs(few, moved))).all():
            break
        displacement = jax.tree.map(lambda leaf: np.asarray(leaf) / 2, displacement)
    return moved, _sampled_entries(displacement, entries).astype(small.dtype)


def _bent(
    small: SmallNetwork, after: Float[Array, "p k d"], metric: Float[np.ndarray, " d"]
) -> SmallNetwork:
    """With the Jacobian at the second point, which gives way to its change.

    Raises:
        NoSecondPoint: it is not finite.
    """
    change, growth = _change(after.astype(small.dtype), small.jacobian)
    if not np.isfinite(float(growth)):
        raise NoSecondPoint(
            "model: the network gives NaN at the weights that its linear model reaches; take "
            "curvature=False (method 'head')"
        )
    displacement = jnp.asarray(metric, small.dtype)
    there = small.weights * displacement
    return dataclasses.replace(
        small,
        bend=Bend(change, change @ there, there, displacement),
        growth=growth,
        # a forward and k backward passes, and on the way there one of training's kind
        passes=round(small.passes + 1 + small.directions.shape[1] + 3, 3),
    )


def _without(tree: PyTree, head: Head) -> PyTree:
    leaves = [
        np.zeros_like(leaf) if name in head.names else leaf
        for name, leaf in named_leaves(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _sampled_entries(tree: PyTree, entries: Entries) -> Float[np.ndarray, " d"]:
    leaves = named_leaves(tree)
    return np.concatenate(
        [np.asarray(leaves[name]).reshape(-1)[np.asarray(index)] for name, index in entries.items()]
    )


@functools.partial(jax.jit, donate_argnums=0)
def _change(after, jacobian):
    """after − Ψ in the place of `after`, and its norm over that of Ψ."""
    change = after - jacobian
    before, by = jnp.linalg.norm(jacobian), jnp.linalg.norm(change)
    return change, jnp.where(by == 0, 0.0, by / jnp.where(before == 0, 1.0, before))


def _as_moved(small: SmallNetwork, state: PyTree, slope: PyTree, entries: Entries) -> PyTree:
    """The displacement of all entries, from that of the sampled ones and the sum of the gradients
    of all.

    An optimiser that treats each entry alone moves it by a function of its gradients: here
    −sign(g)·aₙ·|g|ᵇ, with b of all entries (1 for SGD, about 0 for Adam) and aₙ of each parameter,
    fitted to the sampled ones, which themselves keep what they have.
    """
    moved = np.asarray(small.entries_of(state) - small.entries_of(small.params), np.float64)
    summed = np.asarray(_sampled_entries(slope, entries), np.float64)
    known = (np.abs(moved) > 0) & (np.abs(summed) > 0)
    x, y = (np.log(np.where(known, np.abs(each), 1.0)) for each in (summed, moved))
    bounds = np.cumsum([0, *(len(index) for index in entries.values())])
    parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    weights = np.where(known, np.asarray(small.weights, np.float64), 0.0)

    def mean(values, part):
        return values[part] @ weights[part] / weights[part].sum()

    means = {
        name: (mean(x, part), mean(y, part))
        for name, part in zip(entries, parts, strict=True)
        if weights[part].any()
    }
    top = bottom = 0.0
    for name, part in zip(entries, parts, strict=True):
        if name in means:
            dx, dy = x[part] - means[name][0], y[part] - means[name][1]
            top, bottom = top + (weights[part] * dx) @ dy, bottom + (weights[part] * dx) @ dx
    power = float(np.clip(top / bottom, 0, 1)) if bottom > 0 else 1.0
    leaves = named_leaves(slope)
    found = {}
    for (name, index), part in zip(entries.items(), parts, strict=True):
        leaf = np.asarray(leaves[name])
        factor = np.exp(means[name][1] - power * means[name][0]) if name in means else 0.0
        size = np.where(leaf == 0, 0, np.abs(np.where(leaf == 0, 1, leaf)) ** power)
        guessed = (factor * np.sign(leaf) * size).reshape(-1)
        guessed[np.asarray(index)] = moved[part]
        found[name] = guessed.reshape(leaf.shape).astype(leaf.dtype)
    return jax.tree.unflatten(
        jax.tree.structure(slope),
        [found.get(name, np.zeros_like(leaf)) for name, leaf in leaves.items()],
    )


def path_along(small: SmallNetwork, way: Way, fall: float) -> tuple[PyTree, Float[Array, "n k"]]:
    """An optimiser's own path until the loss has fallen to a share of its start, or to its end: the
    state there, and the sum of minus what pulled at the states before.
    """
    start, enough = _losses(small, fall)
    state, pushed = small.zero(), jnp.zeros_like(small.directions[..., 0])
    for following in way(small):
        loss, pulls = _loss_and_pulls(small, following)
        if not np.isfinite(float(loss)) or float(loss) > 2 * start:
            break  # the second point lies before what blows up
        state, pushed = following, pushed - pulls
        if float(loss) < enough:
            break
    return state, pushed


def _losses(small: SmallNetwork, fall: float) -> tuple[float, float]:
    """The loss at the start, and where it has fallen to a share of that above what soft targets
    leave.
    """
    start = float(small.metrics(small.initial_logits)[0])
    least = least_loss(np.asarray(small.targets), small.loss)
    return start, least + fall * (start - least)


@eqx.filter_jit
def _loss_and_pulls(small, state):
    return small.metrics(small.logits(state))[0], small.pulls(state)


def path_to(small: SmallNetwork, fall: float) -> tuple[PyTree, Float[Array, "n k"]]:
    """Full-batch training of the surrogate until its loss has fallen to a share of its start: the
    state, and the sum of what was pushed back.

    The latter are the cotangents c (N, k) with u = Σᵢ (U_i J_i)ᵀ cᵢ. The path is that of slow
    steps: which way training goes hardly depends on the setting, so one serves all.
    """
    curvature, _ = largest_curvature(small.tangent(small.zero()), small.initial_logits)
    rate = jnp.asarray(_FLOW_RATE / max(curvature, 1e-12), small.dtype)
    carry = small.zero(), jnp.zeros_like(small.directions[..., 0])
    start, enough = _losses(small, fall)
    for _ in range(_FLOW_STEPS // _FLOW_CHUNK):
        following, loss = _flow(small, carry, rate)
        if not np.isfinite(float(loss)) or float(loss) > 2 * start:
            rate = rate / 4  # the kernel has outgrown it
            continue
        carry = following
        if float(loss) < enough:
            break
    return carry


@eqx.filter_jit
def _flow(small: SmallNetwork, carry, rate):
    def step(carry, _):
        state, pushed = carry
        slope, pulls = small.gradient_and_pulls(state)
        moved = jax.tree.map(lambda at, slope: (at - rate * slope).astype(at.dtype), state, slope)
        return (moved, pushed - rate * pulls), None

    carry, _ = jax.lax.scan(step, carry, length=_FLOW_CHUNK)
    return carry, small.metrics(small.logits(carry[0]))[0]
