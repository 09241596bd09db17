"""The passes over the data that make a network's surrogate."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from ntk_tt import losses
from ntk_tt.features.dimension import sketch_error
from ntk_tt.features.directions import (
    HeadPath,
    directions_of,
    head_path,
    shared_directions,
    usual_directions,
)
from ntk_tt.features.feature_options import DEFAULT_OPTIONS, FeatureOptions, takes_former_keywords
from ntk_tt.features.kept_pass import KeptPass
from ntk_tt.features.parameter_sample import ParameterSample, draw
from ntk_tt.features.sampled_pass import Entries, Looked, sampled_pass
from ntk_tt.jacobian.network import check_features, check_logits, check_network, working_type
from ntk_tt.losses import LossName
from ntk_tt.models.model import Model
from ntk_tt.runtime import sharding
from ntk_tt.runtime.input_trees import Inputs, num_samples, on_host, take
from ntk_tt.runtime.memory import affordable_projections, available_bytes, refuse
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.runtime.progress import Progress, silent
from ntk_tt.surrogate.backbone import Backbone, split
from ntk_tt.surrogate.kept import Plan, looked_at_all, planned
from ntk_tt.surrogate.second_point import ANCHOR_FALL, Way, with_bend
from ntk_tt.surrogate.small_network import SmallNetwork
from ntk_tt.surrogate.small_tree import Sampled, small_tree

SAMPLED = 2048  # entries, D', of `auto` (experiments/studies/surrogate.py)
_PILOT = 200  # samples on which the head's path and the entries' weights are found
_PILOT_BLOCKS = 4
_NOTE_SAMPLES = 64  # whose features say how exact the kernel is
MAX_BYTES = 4 << 30


@takes_former_keywords
def expand(
    model: Model,
    inputs: Inputs,
    labels: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n c"],
    *,
    head: bool = True,
    curvature: bool = True,
    fall: float = ANCHOR_FALL,
    way: Way | None = None,
    loss: LossName = "ce",
    num_directions: int | str = "auto",
    options: FeatureOptions = DEFAULT_OPTIONS,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
    kept: KeptPass | None = None,
    pace: Callable[[float], None] | None = None,
    progress: Progress = silent,
) -> SmallNetwork:
    """The small network that stands for this one while it is trained on these data; it prices every
    setting of every optimiser that treats each parameter alone (`ntk_tt.prediction.predict`).

    Args:
        model: the network.
        inputs: (N, ...), as the network takes them.
        labels: (N,) classes, or (N, C) real targets for `mse`.
        head: keep the network's linear head as it is: the one that `Model.head` names, else the
            one that `ntk_tt.models.linear_head.find_head` finds. Without one, or with `False`, all
            parameters are sampled and the logits are what is expanded.
        curvature: expand to second order along the way of training, at the price of a second pass.
        fall: the second point is where the predicted loss has fallen to this share of its start.
        way: to the second point, as `ntk_tt.dynamics.own_way` gives that of an optimiser; None is
            plain gradient descent, the way of SGD.
        loss: `ce` or `mse`.
        num_directions: k, output directions in which each sample is looked at; `auto` takes 4 (6
            with the squared error), all but one of them shared by all samples
            (`SmallNetwork.dropped` says how much of what pulls at the outputs these leave out), and
            one of the sample's own that stands for the rest, and with the way of another optimiser
            than SGD half as many as there are classes, of 6 to 20, that are shared; `few` takes the
            4 in any case; a number takes so many that are shared; `all` takes every output, which
            leaves out nothing.
        options: how the passes run. `num_projections` is D', the number of sampled entries: `auto`
            takes 2,048, `exact` all parameters.
        key: of the sample.
        mesh: of `ntk_tt.runtime.sharding.sample_mesh`; the passes and what they find lie over its
            devices, and the curves are those of one device, to rounding.
        kept: where what the passes find is kept, or is to be; on one device.
        pace: called once, before the passes, with the seconds that a sample takes a pass of
            training's kind.
        progress: called after each block.

    Raises:
        ValueError: an argument out of range, a network that is not what the library takes, or more
            memory than there is.
        OSError: what is to be kept cannot be written.

    Cost: one forward and k backward passes through activations a sample, and a few passes over at
    most 200 samples; with curvature as much again, and one pass of real training's kind. Memory
    N·k·D', twice that with curvature.
    """
    losses.check_loss(loss)
    if not 0 < fall < 1:
        raise ValueError(f"fall: must lie strictly between 0 and 1, got {fall}")
    count = num_samples(inputs)
    if count != len(labels):
        raise ValueError(f"labels: there are {len(labels)} for {count} inputs; give one each")
    inputs = on_host(inputs)
    num_outputs = check_network(model.apply, model.params, inputs)
    if loss == "ce" and num_outputs == 1:
        raise ValueError("loss: cross-entropy needs at least two outputs; use loss='mse' with one")
    targets = losses.encode_targets(labels, num_outputs, working_type(model.params), loss=loss)
    of_sample, of_directions = jax.random.split(jax.random.key(0) if key is None else key)
    few = np.unique(np.linspace(0, count - 1, _PILOT).astype(int))
    on_device = count if mesh is None else sharding.samples_per_device(count, mesh)
    # of what was kept only the head's name is needed
    backbone = functools.cache(lambda: split(model, inputs, with_head=head, options=options))
    looked = functools.cache(lambda: _looked(backbone(), take(inputs, few)))

    def new_plan() -> Plan:
        directions, dropped = _directions(
            backbone(),
            take(inputs, few),
            looked(),
            targets[few],
            loss,
            num_directions,
            count,
            of_directions,
            preconditioned=way is not None,
        )
        num_entries, wanted = _num_entries(
            backbone(),
            options,
            on_device,
            directions.shape[1],
            targets.dtype.itemsize,
            curvature=curvature,
        )
        sample, seconds = _sample(
            backbone(), take(inputs, few), directions[few], num_entries, of_sample
        )
        if pace is not None and seconds is not None:
            pace(seconds)
        return Plan(backbone().head, sample, directions, dropped, num_entries, wanted)

    kept = None if mesh is not None else kept
    plan = planned(kept, new_plan)
    entries = {name: jnp.asarray(index, jnp.int32) for name, index in plan.sample.entries.items()}
    whole = count * (2 if curvature else 1)

    def look(rows: slice, progress: Progress) -> Looked:
        return sampled_pass(
            backbone().apply,
            model.params,
            entries,
            take(inputs, rows),
            plan.directions[rows],
            block_size=options.block_size,
            mesh=mesh,
            progress=progress,
        )

    def check(found: Looked) -> None:
        check_logits(sharding.whole(found.outputs)[:count])
        check_features(found.jacobian)
        backbone().check(found, looked(), few, entries, inputs)

    found = looked_at_all(kept, plan, look, check, lambda done, _: progress(done, whole))
    pilot = len(few) * 2 + Backbone.BLOCK * _PILOT_BLOCKS * (2 if plan.head is None else 4)
    passes = 1 + found.directions.shape[1] + pilot / count
    small = _small_network(model, plan, entries, found, targets, loss, passes, mesh)
    if not curvature or not entries:
        return small
    return with_bend(
        small,
        backbone,
        entries,
        inputs,
        fall=fall,
        way=way,
        kept=kept,
        block_size=options.block_size,
        progress=lambda done, _: progress(count + done, whole),
    )


def _looked(backbone: Backbone, inputs: Inputs) -> Float[Array, "m f"]:
    """Outputs of a few samples, which must be finite."""
    outputs = backbone.outputs(inputs)
    check_logits(outputs)
    return outputs


def _small_network(
    model: Model,
    plan: Plan,
    entries: Entries,
    found: Looked,
    targets: Float[Array, "n c"],
    loss: LossName,
    passes: float,
    mesh: Mesh | None,
) -> SmallNetwork:
    """What was found, put together; with a linear backbone."""
    dtype, weights = working_type(model.params), plan.sample.weights.values()
    small = SmallNetwork(
        small_tree(model.params, entries, plan.head),
        _sampled(model.params, plan.sample),
        entries,
        jnp.asarray(np.concatenate([np.zeros(0), *weights]), dtype),
        found.outputs.astype(dtype),
        found.directions.astype(dtype),
        found.jacobian.astype(dtype),
        targets,
        dropped=plan.dropped,
        passes=round(float(passes), 3),
        num_params=model.num_params,
        head=plan.head,
        loss=loss,
        mesh=mesh,
    )
    if plan.is_whole:
        return small
    return dataclasses.replace(small, note=_note(small, plan.wanted))


def _directions(
    backbone: Backbone,
    inputs: Inputs,
    outputs: Float[Array, "m f"],
    targets: Float[Array, "m c"],
    loss: LossName,
    num_directions: int | str,
    num_samples: int,
    key: Key[Array, ""],
    *,
    preconditioned: bool,
) -> tuple[Float[np.ndarray, "n k f"], float]:
    """U of all samples, and the share of the norm of what pulls at the outputs that the shared
    directions leave out.
    """
    width, num_outputs = outputs.shape[1], targets.shape[1]
    if num_directions == "all":
        return np.broadcast_to(np.eye(width, dtype=targets.dtype), (num_samples, width, width)), 0.0
    if num_directions not in ("auto", "few") and not (
        isinstance(num_directions, int) and 1 <= num_directions <= width
    ):
        raise ValueError(
            f"num_directions: give 'auto', 'few', 'all' or a number from 1 to the {width} outputs "
            f"that are looked at, got {num_directions!r}"
        )
    # residuals of softmax add up to zero: what is pulled has no more dimensions than they
    pulled = num_outputs - (loss == "ce")
    most = width if backbone.weight is not None else min(width, pulled)
    count, spares = num_directions, 0
    if num_directions in ("auto", "few"):
        preconditioned = preconditioned and num_directions == "auto"
        count, spares = usual_directions(num_outputs, loss, preconditioned=preconditioned)
        count = min(most, count)
        spares = min(spares, most - count)
    path = HeadPath(*[jnp.zeros((0,), targets.dtype)] * 2)
    if backbone.weight is not None:
        path = head_path(outputs, backbone.weight, backbone.bias, targets, loss).slowed(
            _head_share(backbone, inputs, outputs, targets, loss)
        )
    shared = shared_directions(loss, outputs, targets, path, int(count))
    found = directions_of(loss, shared.rows, path, num_samples, key, spares=spares)
    return np.asarray(found), shared.left_out


def _head_share(
    backbone: Backbone,
    inputs: Inputs,
    outputs: Float[Array, "m f"],
    targets: Float[Array, "m c"],
    loss: LossName,
) -> float:
    """The head's part of ‖∂L/∂w‖², the rate at which the loss begins to fall, on a few samples."""
    weight, bias = backbone.weight, backbone.bias
    assert weight is not None
    some = np.unique(np.linspace(0, len(outputs) - 1, Backbone.BLOCK * _PILOT_BLOCKS).astype(int))
    logits = outputs[some] @ weight + (0 if bias is None else bias)
    residuals = losses.mean_residuals(loss, logits.astype(targets.dtype), targets[some])
    of_head = float(jnp.square(outputs[some].T @ residuals).sum())
    pulled = named_leaves(backbone.pull(backbone.params, take(inputs, some), residuals @ weight.T))
    rest = sum(float(np.square(np.asarray(pulled[name])).sum()) for name in backbone.leaves)
    share = of_head / max(of_head + rest, 1e-30)
    return share if np.isfinite(share) else 1.0


def _num_entries(
    backbone: Backbone,
    options: FeatureOptions,
    num_samples: int,
    num_directions: int,
    itemsize: int,
    *,
    curvature: bool,
) -> tuple[int, int]:
    """D', and what it would be where memory does not matter.

    Raises:
        ValueError: there is not enough memory.
    """
    leaves = backbone.leaves
    total = sum(leaf.size for leaf in leaves.values())
    num_rows = num_samples * num_directions * (1 + curvature)
    usable = available_bytes() if options.memory is None else options.memory
    if options.num_projections == "auto":
        wanted = min(total, max(SAMPLED, 2 * len(leaves)))
        most = MAX_BYTES if options.memory is None else usable
        return affordable_projections(num_rows, wanted, itemsize, usable, most=most), wanted
    asked = options.num_projections
    wanted = min(total, asked) if isinstance(asked, int) else total
    if num_rows * wanted * itemsize > usable:
        refuse(
            f"features of {num_samples} samples × {num_directions} directions × D' = {wanted}",
            num_rows * wanted * itemsize,
            usable,
            f"what would fit: num_projections = {max(1, usable // (num_rows * itemsize))}, "
            f"{'curvature=False, ' if curvature else ''}or fewer samples or directions",
        )
    return wanted, wanted


def _note(small: SmallNetwork, wanted: int) -> str:
    """What a D' that had to give way to memory means."""
    few = np.unique(np.linspace(0, small.num_samples - 1, _NOTE_SAMPLES).astype(int))
    said = "the kernel is less exact"
    if len(few) > 1:
        error = sketch_error(small.jacobian[few] * jnp.sqrt(small.weights), small.num_samples)
        said = f"the kernel's relative error is expected to be {error:.1%}"
    return (
        f"memory: D' = {small.num_projections} instead of {wanted}: {said}; fewer images, or more "
        "memory, make it smaller"
    )


def _sample(
    backbone: Backbone,
    inputs,
    directions: Float[np.ndarray, "m k f"],
    num_entries: int,
    key: Key[Array, ""],
) -> tuple[ParameterSample, float | None]:
    """Entries of the backbone's parameters, by how far they move the outputs along U; the seconds
    that a sample took in these passes of training's kind, None where there were none.
    """
    leaves = backbone.leaves
    total = sum(leaf.size for leaf in leaves.values())
    if num_entries >= total:
        squares = {name: np.ones(leaf.size) for name, leaf in leaves.items()}
        return draw(squares, max(1, total), key=key), None
    of_signs, of_draw = jax.random.split(key)
    squares: dict[str, Any] = dict.fromkeys(leaves, 0.0)
    size = min(backbone.BLOCK, len(directions))
    starts = np.linspace(0, len(directions) - size, _PILOT_BLOCKS).astype(int)
    seconds = []
    for start, own in zip(starts, jax.random.split(of_signs, _PILOT_BLOCKS), strict=True):
        block = slice(int(start), int(start) + size)
        signs = jax.random.rademacher(own, directions[block].shape[:2], directions.dtype)
        cotangents = np.einsum("nk,nkf->nf", np.asarray(signs), directions[block])
        clock = time.perf_counter()
        pulled = jax.device_get(backbone.pull(backbone.params, take(inputs, block), cotangents))
        seconds.append(time.perf_counter() - clock)
        pulled = named_leaves(pulled)
        for name in squares:
            squares[name] = squares[name] + np.square(np.asarray(pulled[name], np.float64)).ravel()
    # the first one is mostly compilation
    return draw(squares, num_entries, key=of_draw, importance="both"), min(seconds) / size


def _sampled(params: PyTree, sample: ParameterSample) -> tuple[Sampled, ...]:
    leaves = named_leaves(params)
    return tuple(
        Sampled(name, len(index), len(index) == leaves[name].size)
        for name, index in sample.entries.items()
    )
