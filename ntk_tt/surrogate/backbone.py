"""The part of a network that is expanded, and passes of training's own kind over it."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.sampled_pass import Entries, Looked
from ntk_tt.jacobian.network import (
    Apply,
    blocks,
    check_logits,
    compiled_logits,
    logits_of,
    working_type,
)
from ntk_tt.jacobian.self_check import check_pass
from ntk_tt.models.linear_head import Head, find_head, leaves_used, named_head
from ntk_tt.models.model import Model
from ntk_tt.runtime import sharding
from ntk_tt.runtime.input_trees import Inputs, block_of, num_samples, take
from ntk_tt.runtime.parameter_names import named_leaves

_TOLERANCE = 2e-3  # of sums in single precision, where ReLUs may change sides
_NEGLIGIBLE = 0.01  # of all gradients, an error that counts against no single parameter
_ANOTHERS = 0.5  # of a parameter's gradient: more than rounding, less than what another's is off by


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What of a network is expanded.

    Attributes:
        apply: `(params, inputs) -> outputs (N, F)`: embeddings where there is a head, else logits.
        params: all parameters w₀, the head's among them.
        head: the linear head that reads the embeddings; None without.
        weight, bias: of the head.
    """

    apply: Apply
    params: PyTree
    head: Head | None = None
    weight: Float[Array, "f c"] | None = None
    bias: Float[Array, " c"] | None = None

    BLOCK: ClassVar[int] = 16  # samples in a pass

    @property
    def leaves(self) -> dict[str, Array]:
        """The parameters that are expanded, by their names' order: a dict of them has another order
        in a compiled program than one of a module's attributes, or of more than ten layers.
        """
        return {
            name: leaf
            for name, leaf in sorted(named_leaves(self.params).items())
            if leaf.size and not (self.head and name in self.head.names)
        }

    def outputs(self, inputs: Inputs, params: PyTree | None = None) -> Float[Array, "n f"]:
        """Of all inputs, at these parameters (w₀ where none are given)."""
        at, dtype = self.params if params is None else params, working_type(self.params)
        size = min(self.BLOCK, num_samples(inputs))
        parts = []
        for block in blocks(num_samples(inputs), size):
            start = min(block.start, num_samples(inputs) - size)
            found = compiled_logits(self.apply, at, block_of(inputs, slice(start, start + size)))
            parts.append(np.asarray(found)[block.start - start :].astype(dtype))
        return jnp.asarray(np.concatenate(parts))

    def pull(
        self,
        params: PyTree,
        inputs: Inputs,
        cotangents: Float[Array | np.ndarray, "n f"],
    ) -> PyTree:
        """Σᵢ (∂outputs/∂w)ᵀ cᵢ at some parameters: one pass of training's kind."""
        size = min(self.BLOCK, num_samples(inputs))
        # sums of half precision would lose the small ones
        total: Any = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params
        )
        cotangents = np.asarray(cotangents)
        for block in blocks(num_samples(inputs), size):
            start = min(block.start, num_samples(inputs) - size)
            new = np.arange(size) >= block.start - start  # the last block is moved back
            part_of = cotangents[start : start + size] * new[:, None]
            taken = block_of(inputs, slice(start, start + size))
            total = _pull(self.apply, params, taken, part_of, total)
        return total

    def check(
        self,
        found: Looked,
        outputs: Float[Array, "m f"],
        few: np.ndarray,
        entries: Entries,
        inputs: Inputs,
    ) -> None:
        """Hold what a pass made of each sample alone against the network on whole batches: outputs,
        and derivatives along a random combination of directions.

        Raises:
            ValueError: samples that see each other, outputs that are drawn at random, or a
                parameter whose derivatives are not those of `jax.vjp`.

        Cost: one pass of training's kind over a block.
        """
        batch, read = np.asarray(outputs), sharding.whole(found.outputs)
        alone = read[few]
        right = np.abs(alone - batch).max() <= _TOLERANCE * max(np.abs(batch).max(), 1e-30)
        size = min(self.BLOCK, num_samples(inputs))
        directions, jacobian = (
            sharding.whole(each[:size]) for each in (found.directions, found.jacobian)
        )
        signs = np.random.default_rng(0).choice([-1.0, 1.0], directions.shape[:2])
        signs = signs.astype(directions.dtype)
        cotangents = np.einsum("nk,nkf->nf", signs, directions)
        pulled = named_leaves(self.pull(self.params, take(inputs, slice(size)), cotangents))
        mine = np.einsum("nk,nkd->d", signs, jacobian)
        errors, norms, start = [], [], 0
        for name, index in entries.items():
            theirs = np.asarray(pulled[name]).reshape(-1)[np.asarray(index)]
            errors.append(float(np.linalg.norm(theirs - mine[start : start + len(index)])))
            norms.append(float(np.linalg.norm(theirs)))
            start += len(index)
        bounds = np.asarray(norms) + _NEGLIGIBLE * np.linalg.norm(norms)
        if right and np.all(errors <= 4 * _TOLERANCE * bounds):
            return
        # the longer way, which knows of rounding and says what is wrong
        outputs = jnp.asarray(read[: num_samples(inputs)])
        check_pass(self.apply, self.params, inputs, outputs=outputs)
        for name, error, bound in zip(entries, errors, bounds, strict=True):
            if not error <= _ANOTHERS * bound:  # the longer way does not know of the sample
                raise ValueError(
                    f"params: the sampled derivatives of {name!r} differ from jax.vjp by "
                    f"{error / bound:.2g} of their size; take method='replay', and report the "
                    "network"
                )


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _pull(apply, params, inputs, cotangents, total):
    outputs, pullback = jax.vjp(lambda params: logits_of(apply, params, inputs), params)
    return jax.tree.map(jnp.add, total, pullback(cotangents.astype(outputs.dtype))[0])


def split(
    model: Model,
    inputs: Inputs,
    *,
    with_head: bool,
    options: FeatureOptions,
) -> Backbone:
    """The backbone under the model's head, the one that it names or else the one that is found in
    its trace; or the whole network where it has no linear head that trains, that is not to be kept,
    or whose numbers the backbone uses as well (tied weights).

    Raises:
        ValueError: logits that are not the head times the features, though the model says so.
    """
    whole = Backbone(options.rounded(model.apply), model.params)
    if not with_head:
        return whole
    few = block_of(inputs, slice(Backbone.BLOCK))
    head, features = named_head(model), model.apply_features
    is_named = head is not None and features is not None
    if head is None or features is None:
        found = find_head(model.apply, model.params, few)
        if found is None:
            return whole
        head, features = found
    elif head.names & leaves_used(features, model.params, few)[0]:
        return whole
    dtype = working_type(model.params)
    weight, bias = head.read(model.params, dtype)
    backbone = Backbone(options.rounded(features), model.params, head, weight, bias)
    logits = compiled_logits(model.apply, model.params, few).astype(dtype)
    check_logits(logits)  # what is computed from embeddings here may overflow there
    read = backbone.outputs(few) @ weight + (0 if bias is None else bias)
    tolerance = 1e-2 * (1 + float(jnp.abs(logits).max()))
    if options.precision != "float32" or np.allclose(logits, read, rtol=1e-2, atol=tolerance):
        return backbone
    if not is_named:
        return whole
    check_pass(model.apply, model.params, inputs)  # it may draw random numbers
    raise ValueError(
        f"model: the logits of {model.name} are not its head times its features; take "
        "method='replay', the frozen kernel"
    )
