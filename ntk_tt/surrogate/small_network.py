"""The small network that is trained instead of the real one.

Its parameters are a sample of the real network's, under their own names and with their own values,
and the real head. Each sample of the data is looked at along a few directions U_i of its own:

    f_i = Wᵀ(φ_i + U_iᵀ p_i(u)) + b,
    p_i(u) = Ψ_i z + s B_i z − ½ s² B_i z₁,    z_e = (w_e − w₀,e)/π_e,

with φ_i the embeddings at w₀, Ψ_i the derivatives of U_i φ_i in the sampled parameters, and π_e the
chance with which entry e was drawn: the sum over the sample stands for the sum over all. The
gradient of an entry is exact, whatever the sample, so an optimiser that treats each parameter alone
does to these what it does to the network's. B is the change of Ψ to a second point w₀ + u₁, and
s = ⟨u, u₁⟩/‖u₁‖² how far along training has come: p has the right derivatives at both.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from ntk_tt import losses
from ntk_tt.kernels.operators import Indices, sum_of_rows
from ntk_tt.losses import LossName
from ntk_tt.models.linear_head import Head
from ntk_tt.runtime.parameter_names import named_leaves
from ntk_tt.runtime.sharding import constrained
from ntk_tt.surrogate.bend import Bend
from ntk_tt.surrogate.linear import LinearizedProblem
from ntk_tt.surrogate.reach import in_reach
from ntk_tt.surrogate.small_tree import Sampled, small_tree
from ntk_tt.surrogate.tangent_kernel import TangentKernel

_BACKBONE = "backbone"
_FEW_OUTPUTS = 20  # up to which a head of many states is cheaper on φ and U than on embeddings


class SmallNetwork(eqx.Module):
    """The surrogate of a network on its data. A point of it is a whole state: its parameters.

    Attributes:
        params: a tree with the network's names: the sampled entries of a parameter as an array of
            as many axes, (1, …, 1, size + 1) or the parameter's own shape where all are taken; the
            head whole.
        sampled: of the backbone's parameters, in the order of `weights` and of Ψ's columns.
        entries: of each of them the flat indices that are sampled.
        weights: 1/π (D',).
        outputs: φ (N, F); the logits where there is no head. This, U, Ψ and what B has of each
            sample lie over the devices of a mesh where there is one, filled up with zeros.
        directions: U (N, k, F), orthonormal rows.
        jacobian: Ψ (N, k, D').
        targets: (N, C), on every device.
        bend: None for a linear backbone.
        dropped: share of the pulls' norm that U leaves out, the error estimate that chose k.
        growth: ‖B‖/‖Ψ‖, how much the Jacobian changes to the second point; 0 without one.
        passes: forward passes, or backward passes through activations, that a sample took.
        num_params: D of the real network.
        head: which of the parameters are the head, which is not sampled; None where there is none.
        loss: `ce` or `mse`.
        note: for the reader, what had to give way to memory and what that means.
        mesh: None on one device.
        for_many: whether products go in the order that suits many states at once.
        shift: (N, C), what is added to the logits wherever they are read; None adds nothing.
    """

    params: PyTree
    sampled: tuple[Sampled, ...]
    entries: dict[str, Int[Array, " _"]]
    weights: Float[Array, " d"]
    outputs: Float[Array, "p f"]
    directions: Float[Array, "p k f"]
    jacobian: Float[Array, "p k d"]
    targets: Float[Array, "n c"]
    bend: Bend | None = None
    dropped: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    growth: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    passes: float = eqx.field(static=True, default=0.0)
    num_params: int = eqx.field(static=True, default=0)
    head: Head | None = eqx.field(static=True, default=None)
    loss: LossName = eqx.field(static=True, default="ce")
    note: str = eqx.field(static=True, default="")
    mesh: Mesh | None = eqx.field(static=True, default=None)
    for_many: bool = eqx.field(static=True, default=False)
    shift: Float[Array, "n c"] | None = None

    @property
    def initial_logits(self) -> Float[Array, "n c"]:
        return self.logits(self.zero())

    @property
    def num_samples(self) -> int:
        return len(self.targets)

    @property
    def rank(self) -> int:
        """The most eigenvalues of Θ that are not zero, as the loss sees it."""
        return self.num_samples * (self.targets.shape[1] - (self.loss == "ce"))

    @property
    def num_projections(self) -> int | None:
        if all(each.is_whole for each in self.sampled):
            return None
        return self.jacobian.shape[-1]

    @property
    def dtype(self) -> Any:
        return self.jacobian.dtype

    @property
    def space(self) -> str:
        return "primal"

    @property
    def follows_kernel(self) -> bool:
        return True

    @property
    def streamed(self) -> bool:
        return False

    @property
    def takes_any_optimizer(self) -> bool:
        return True

    @property
    def has_one_sharpness(self) -> bool:
        return False

    def zero(self) -> PyTree:
        return self.params

    def of_network(self, tree: PyTree) -> PyTree:
        """A tree like the real network's parameters, as a tree like `params`."""
        return small_tree(tree, self.entries, self.head)

    def of_optimizer(self, opt_state: PyTree, params: PyTree) -> PyTree:
        """An optax state of training the network's `params`, as that of training these here: its
        moments are sampled as the parameters are.
        """
        tree = jax.tree.structure(params)

        def sampled(part):
            return self.of_network(part) if is_like(part) else part

        def is_like(part):
            return jax.tree.structure(part) == tree and all(
                jnp.shape(mine) == jnp.shape(leaf)
                for mine, leaf in zip(jax.tree.leaves(part), jax.tree.leaves(params), strict=True)
            )

        return jax.tree.map(sampled, opt_state, is_leaf=is_like)

    def moved(self, state: PyTree) -> Float[Array, " d"]:
        """z (D',): how far each sampled entry has moved, times what it stands for."""
        return self.weights * (self.entries_of(state) - self.entries_of(self.params))

    def logits(self, state: PyTree, indices: Indices | None = None) -> Float[Array, "b c"]:
        """f of all samples, or of some."""
        along = self._moved_along(self.moved(state), indices)
        weight, bias = self.head_of(state)
        return self._read(along, weight, bias, indices)

    def gradient(
        self, state: PyTree, weight_decay: Any = 0.0, indices: Indices | None = None
    ) -> PyTree:
        """∂L/∂(parameters) of the mean loss of all samples, or of a batch: of the sampled entries
        and the head that of the network itself, as far as Ψ goes.
        """

        def of_samples(rows, counted):
            count = self.num_samples if indices is None else len(indices)
            return self._pulled(state, rows, counted, count)[0]

        if indices is None:
            pulled = of_samples(None, 1)
        else:
            held = (self.jacobian,) if self.bend is None else (self.jacobian, self.bend.change)
            ones = jnp.ones((len(indices), 1), self.targets.dtype)
            pulled = sum_of_rows(of_samples, indices, ones, *held)
        found = self._tree(*pulled)
        return jax.tree.map(lambda slope, at: slope + weight_decay * at, found, state)

    def metrics(self, logits: Float[Array, "n c"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss and error rate."""
        return losses.mean_loss(self.loss, logits, self.targets), losses.error_rate(
            logits, self.targets
        )

    def pulls(self, state: PyTree) -> Float[Array, "p k"]:
        """∂L/∂p of all samples: what is pulled back along U."""
        return self._pulled(state, None, 1, self.num_samples)[1]

    def gradient_and_pulls(self, state: PyTree) -> tuple[PyTree, Float[Array, "p k"]]:
        """Both, of all samples."""
        (slope, weight, bias), pulls = self._pulled(state, None, 1, self.num_samples)
        return self._tree(slope, weight, bias), pulls

    def point(self, state: PyTree) -> PyTree:
        return state

    def shifted(self, by: Float[Array, "n c"]) -> "SmallNetwork":
        return dataclasses.replace(self, shift=by)

    def of_samples(self, indices: Indices) -> "SmallNetwork":
        if self.mesh is not None:
            raise ValueError(
                "problem: a part of its samples can be taken only where it lies on one device; "
                "expand those samples alone"
            )
        bend = self.bend
        if bend is not None:
            bend = dataclasses.replace(bend, change=bend.change[indices], along=bend.along[indices])
        return dataclasses.replace(
            self,
            outputs=self.outputs[indices],
            directions=self.directions[indices],
            jacobian=self.jacobian[indices],
            targets=self.targets[indices],
            bend=bend,
            shift=None if self.shift is None else self.shift[indices],
        )

    def frozen(self, method: str) -> LinearizedProblem:
        raise ValueError(
            f"method: a surrogate that trains can only be replayed, got {method!r}; linearize() "
            f"makes the one that {method!r} takes"
        )

    @property
    def numbers_a_pass(self) -> int:
        rows, width = self.directions.shape[1:]
        num_outputs = self.targets.shape[1]
        read = rows * num_outputs if num_outputs <= _FEW_OUTPUTS else 3 * width
        return self.num_samples * (2 * read + 4 * (rows + num_outputs))

    def facts(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "linear_head": None if self.head is None else self.head.weight,
            "num_directions": self.directions.shape[1],
            "directions_dropped": float(self.dropped),
            "kernel_growth": float(self.growth),
            "passes_per_sample": self.passes,
        }

    def tangent(self, point: PyTree, scale: PyTree | None = None) -> LinearizedProblem:
        """The problem with the kernel frozen as it is at a state. `scale`, a tree like the
        parameters, is what the optimiser multiplies each gradient by: Θ is then J·scale·Jᵀ.
        """
        moved, (weight, bias) = self.moved(point), self.head_of(point)
        along = self._moved_along(moved, None)
        logits = self._read(along, weight, bias, None)
        embeddings = self.outputs + jnp.einsum("nk,nkf->nf", along, self.directions)
        read = self.directions if weight is None else self.directions @ weight
        one, bend, slope = jnp.ones((), self.dtype), jnp.zeros_like(logits), jnp.zeros_like(moved)
        jacobians, shares = (self.jacobian,), (one,)
        if self.bend is not None:
            share, slope = jax.value_and_grad(self.bend.share)(moved)
            jacobians, shares = (self.jacobian, self.bend.change), (one, share)
            bent = self.bend.change @ moved - share * self.bend.along
            bend = jnp.einsum("nk,nkc->nc", bent, read)[: self.num_samples]
        backbone, of_head = self.weights, jnp.ones((), self.dtype)
        if scale is not None:
            backbone = backbone * self.entries_of(scale)
            kernel, of_bias = self.head_of(scale)
            if kernel is not None:
                of_head = kernel if of_bias is None else jnp.concatenate([kernel, of_bias[None]])
        head = None
        if weight is not None:
            head = embeddings
            if bias is not None:
                head = jnp.concatenate([head, jnp.ones_like(head[:, :1])], 1)
        roots = jnp.sqrt(backbone), jnp.sqrt(of_head)
        tangent = TangentKernel(jacobians, shares, read, bend, slope, head, *roots)
        return LinearizedProblem(tangent, logits, jnp.zeros_like(logits), self.targets, self.loss)

    def alike(self, *, is_sgd: bool, num_steps: int) -> "SmallNetwork":
        """With one leaf in place of a hundred its program is small; SGD's, where that is cheaper,
        goes on in a basis of what it can reach.
        """
        backbone, small = self.entries_of(self.params), self
        is_whole = all(each.is_whole for each in self.sampled)
        found = None
        if is_sgd and self.mesh is None:
            found = in_reach(self.jacobian, self.bend, self.weights, backbone, num_steps)
        if found is not None:
            jacobian, bend, backbone = found
            weights, is_whole = jnp.ones_like(backbone), True
            small = dataclasses.replace(self, jacobian=jacobian, bend=bend, weights=weights)
        size = len(backbone)
        if not is_whole:
            backbone = jnp.append(backbone, jnp.zeros_like(backbone[:1]))
        params: dict[str, Any] = {_BACKBONE: backbone}
        head = None
        if self.head is not None:
            weight, bias = self.head_of(self.params)
            params["head"] = {"weight": weight} | ({} if bias is None else {"bias": bias})
            head = Head("head.weight", None if bias is None else "head.bias")
        return dataclasses.replace(
            small,
            params=params,
            sampled=(Sampled(_BACKBONE, size, is_whole),),
            entries={_BACKBONE: jnp.arange(size, dtype=jnp.int32)},
            head=head,
            for_many=True,
        )

    def entries_of(self, tree: PyTree) -> Float[Array, " d"]:
        """The sampled entries of a tree like `params`, one after another."""
        leaves = named_leaves(tree)
        parts = [leaves[each.name].reshape(-1)[: each.size] for each in self.sampled]
        return jnp.concatenate([jnp.zeros(0, self.dtype), *parts]).astype(self.dtype)

    def head_of(self, tree: PyTree) -> tuple[Array | None, Array | None]:
        return (None, None) if self.head is None else self.head.read(tree, self.dtype)

    def _tree(self, slope: Float[Array, " d"], weight, bias) -> PyTree:
        """A gradient as a tree like `params`."""
        leaves, found, start = named_leaves(self.params), {}, 0
        for each in self.sampled:
            mine, stands_for = (
                values[start : start + each.size] for values in (slope, self.weights)
            )
            start += each.size
            if not each.is_whole:
                rest = ((stands_for - 1) * jnp.square(mine)).sum()
                mine = jnp.concatenate([mine, jnp.sqrt(jnp.maximum(0.0, rest))[None]])
            found[each.name] = mine
        if self.head is not None:
            found |= self.head.by_name(weight, bias)
        return jax.tree.unflatten(
            jax.tree.structure(self.params),
            [
                found[name].reshape(leaf.shape).astype(leaf.dtype)
                if name in found
                else jnp.zeros_like(leaf)
                for name, leaf in leaves.items()
            ],
        )

    def _pulled(self, state: PyTree, rows: Indices | None, counted, count: int):
        """The gradients of z, of the head's weight and bias, and of p."""
        weight, bias = self.head_of(state)
        along, back_to_entries = jax.vjp(
            lambda moved: self._moved_along(moved, rows), self.moved(state)
        )
        logits, back = jax.vjp(
            lambda along, weight, bias: self._read(along, weight, bias, rows), along, weight, bias
        )
        targets = self.targets if rows is None else self.targets[rows]
        residuals = losses.mean_residuals(self.loss, logits, targets, count)
        pulls, of_weight, of_bias = back(counted * residuals)
        return (*back_to_entries(pulls), of_weight, of_bias), pulls

    def _moved_along(
        self, moved: Float[Array, " d"], indices: Indices | None
    ) -> Float[Array, "b k"]:
        """p(u)."""
        jacobian = self.jacobian if indices is None else self.jacobian[indices]
        along = jacobian @ moved
        return along if self.bend is None else along + self.bend.move(moved, indices)

    def _read(self, along, weight, bias, indices) -> Float[Array, "b c"]:
        outputs, directions = (
            each if indices is None else each[indices] for each in (self.outputs, self.directions)
        )
        if weight is not None and self.for_many and weight.shape[1] <= _FEW_OUTPUTS:
            # no embeddings of each state's own: one product of what all states share
            logits = outputs @ weight + jnp.einsum("nk,nkc->nc", along, directions @ weight)
        else:
            logits = outputs + jnp.einsum("nk,nkf->nf", along, directions)
            if weight is not None:
                logits = logits @ weight
        if bias is not None:
            logits = logits + bias
        count = self.num_samples if indices is None else len(indices)
        logits = logits[:count]
        if self.shift is not None:
            logits = logits + (self.shift if indices is None else self.shift[indices])
        return constrained(logits, self.mesh)
