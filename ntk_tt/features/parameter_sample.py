"""A sketch that is a sample of the parameters themselves: few columns of the Jacobian, by weight.

Entries are drawn so that those along which the outputs move most are nearly certain to be there
(importance sampling), and each stands for 1/π others, π the probability that it is drawn. Θ's
estimate Σ J_s J_sᵀ/π_s is unbiased, and about as good as that of any projection of the same D'
(`experiments.studies.sample_error`). What a projection can't do: a sampled entry is a parameter,
with its true value and its exact gradient, so whatever an optimiser does entry by entry (Adam's
second moments, decoupled decay) can be done to it.
"""

import functools
import zlib
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ntk_tt.features.projections import AbstractSketch
from ntk_tt.jacobian.network import Apply, logits_of
from ntk_tt.jacobian.structured import layers
from ntk_tt.runtime.input_trees import Inputs, as_batch, num_samples
from ntk_tt.runtime.parameter_names import named_leaves

Importance = Literal["square", "root", "both"]

_PILOT = 8  # samples by which entries are weighed
_COMBINATIONS = 2  # of the outputs, with random signs: E(Σ_c ±G_c)² = Σ_c G_c²
# of an entry's importance, the part that is its parameter's mean: a few samples leave many entries
# without a gradient that others would give it
_DEFENCE = 0.1
_LEAST = 4  # entries of any parameter that has so many
_CHUNK_NUMBERS = 1 << 22  # gathered at a time


class ParameterSample(AbstractSketch):
    """Entries of the parameters, and how many others each stands for.

    As a projection it gives J's columns at these entries times √weight, so that Φ Φᵀ estimates Θ.

    Attributes:
        entries: for each parameter's name the flat indices (C order) of its entries, rising.
        weights: for each name 1/π of these entries, at least 1.
        num_projections: D', the number of entries in all.
    """

    entries: dict[str, Int[np.ndarray, " _"]]
    weights: dict[str, Float[np.ndarray, " _"]]
    num_projections: int = eqx.field(static=True)

    def start(self, num_rows, dtype):
        return jnp.zeros((num_rows, self.num_projections), dtype)

    def add(self, total, name, gradient):
        if name not in self.entries:
            return total
        rows = gradient.reshape(len(gradient), -1)
        return self._put(total, name, jnp.take(rows, self.entries[name], axis=1))

    def add_product(
        self,
        total: Array,
        name: str,
        shape: tuple[int, ...],
        activations: Float[Array, "n p k"],
        signals: Float[Array, "n c p o"],
    ) -> Array:
        """`add` for the gradients Σ_p activationsᵀ signals, of which an entry (k, o) is one dot
        product over the positions: no gradient is formed.
        """
        if name not in self.entries:
            return total
        rows, columns = np.divmod(self.entries[name], shape[-1])
        found = _entries_of_product(activations, signals, rows, columns, total.dtype)
        return self._put(total, name, found.reshape(len(total), -1))

    def takes_products(self, shape):
        return len(shape) > 1

    def finish(self, total):
        return total

    def values(self, params: PyTree) -> dict[str, Float[Array, " _"]]:
        """The sampled entries' values in a tree of parameters."""
        leaves = named_leaves(params)
        return {
            name: jnp.take(leaves[name].reshape(-1), index) for name, index in self.entries.items()
        }

    def _put(self, total: Array, name: str, columns: Float[Array, "rows m"]) -> Array:
        start = 0
        for other, index in self.entries.items():
            if other == name:
                break
            start += len(index)
        scaled = columns.astype(total.dtype) * np.sqrt(self.weights[name]).astype(total.dtype)
        return total.at[:, start : start + columns.shape[1]].add(scaled)


def sample_parameters(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    num_entries: int,
    *,
    key: Key[Array, ""],
    importance: Importance = "square",
) -> ParameterSample:
    """Draw entries of every parameter by importance.

    Args:
        apply, params, inputs: the network at the weights that are sampled, and samples of its data,
            of which a few are looked at.
        num_entries: D'; from the number of all parameters on, all are taken, each once.
        key: of the draw: an entry's luck depends on (key, its parameter's name) and the chances.
        importance: `square` draws ∝ the mean square of a column of J, best for Θ and so for SGD;
            `root` ∝ its root, which is better for optimisers that move all entries alike, as Adam;
            `both` ∝ the mean of the two, never much worse than the better one.

    Raises:
        ValueError: `num_entries` below the number of parameters' names.

    Cost: one forward and two backward passes of 8 samples, and their gradients.
    """
    sizes = {name: leaf.size for name, leaf in named_leaves(params).items() if leaf.size}
    if num_entries >= sum(sizes.values()) or num_entries < len(sizes):  # taken whole, or refused
        squares = {name: np.ones(size) for name, size in sizes.items()}
    else:
        squares = mean_squares(apply, params, inputs, key)
    return draw(
        {name: squares[name] for name in sizes}, num_entries, key=key, importance=importance
    )


def draw(
    squares: dict[str, Float[np.ndarray, " _"]],
    num_entries: int,
    *,
    key: Key[Array, ""],
    importance: Importance = "square",
) -> ParameterSample:
    """`sample_parameters` from the mean squares of each entry's derivatives, known up to a factor.

    The numbers of entries of single parameters are rounded to a coarse scale, so that data much
    like other data gives arrays of the same shapes: D' is within a few per cent of `num_entries`.
    """
    sizes = {name: len(square) for name, square in squares.items()}
    if num_entries < len(sizes):
        raise ValueError(
            f"num_entries: {num_entries} leave some of {len(sizes)} parameters without an entry; "
            f"take at least {len(sizes)}"
        )
    if num_entries >= sum(sizes.values()):
        entries = {name: np.arange(size) for name, size in sizes.items()}
        ones = {name: np.ones(size, np.float32) for name, size in sizes.items()}
        return ParameterSample(entries=entries, weights=ones, num_projections=sum(sizes.values()))
    scores = {}
    for name, square in squares.items():
        score = np.asarray(square, np.float64)
        score = score + _DEFENCE * score.mean() + np.finfo(np.float32).tiny
        scores[name] = score if importance == "square" else np.sqrt(score)
    if importance == "both":
        square = {name: np.square(score) for name, score in scores.items()}
        total, of_squares = (sum(map(np.sum, each.values())) for each in (scores, square))
        scores = {name: score / total + square[name] / of_squares for name, score in scores.items()}
    chances = inclusion_probabilities(scores, num_entries)
    return _drawn(chances, scores, key)


def mean_squares(
    apply: Apply, params: PyTree, inputs: Inputs, key: Key[Array, ""]
) -> dict[str, Float[np.ndarray, " _"]]:
    """The sum over outputs of squared derivatives, mean over a few samples, for every entry."""
    chosen = np.unique(np.linspace(0, num_samples(inputs) - 1, _PILOT).astype(int))
    few = jax.tree.map(
        lambda leaf: jnp.asarray(np.stack([np.asarray(leaf[int(number)]) for number in chosen])),
        inputs,
    )
    outputs = jax.eval_shape(functools.partial(logits_of, apply), params, few).shape[1]
    signs = 1.0 - 2.0 * jax.random.bernoulli(key, shape=(outputs, _COMBINATIONS))
    found = _mean_squares(apply, params, few, signs)
    return {name: np.asarray(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _mean_squares(apply, params, few, signs):
    def combined(params, x):
        logits = logits_of(apply, params, x)
        return logits @ signs.astype(logits.dtype)

    names, leaves = list(named_leaves(params)), jax.tree.leaves(params)

    def of_one(x):
        gradients: dict[str, Array] = {}
        for layer in layers(combined, params, as_batch(x)):
            name = names[layer.source.leaf]
            gradient = layer.gradient(leaves)[0].reshape(_COMBINATIONS, -1)
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
        return {
            name: jnp.square(gradients[name]).mean(0)
            if name in gradients
            else jnp.zeros(leaf.size, leaf.dtype)
            for name, leaf in zip(names, leaves, strict=True)
        }

    return jax.tree.map(lambda each: each.mean(0), jax.lax.map(of_one, few))


def inclusion_probabilities(
    scores: dict[str, Float[np.ndarray, " _"]], total: int
) -> dict[str, Float[np.ndarray, " _"]]:
    """π ∝ scores, at most 1, so that their sum is `total` and each parameter expects a few."""
    least = {name: min(len(score), _LEAST) for name, score in scores.items()}
    if sum(least.values()) > total:
        least = dict.fromkeys(scores, 1)
    own: dict[str, np.ndarray] = {}
    while True:  # those that would get too few have theirs, the others share the rest
        others = [name for name in scores if name not in own]
        left = total - sum(least[name] for name in own)
        shared = _capped(np.concatenate([scores[name] for name in others]), left)
        parts = np.split(shared, np.cumsum([len(scores[name]) for name in others])[:-1])
        poor = [
            name
            for name, part in zip(others, parts, strict=True)
            if part.sum() < least[name] * (1 - 1e-9)
        ]
        if not poor or len(poor) == len(others):
            own |= dict(zip(others, parts, strict=True))
            return {name: own[name] for name in scores}
        own |= {name: _capped(scores[name], least[name]) for name in poor}


def _capped(scores: Float[np.ndarray, " size"], total: int) -> Float[np.ndarray, " size"]:
    """min(1, c·scores) with the c that makes their sum `total`."""
    if total >= len(scores):
        return np.ones(len(scores))
    rising = np.sort(scores)
    # with the k largest at 1 the others share total − k
    sums = np.cumsum(rising)
    certain = np.arange(min(int(total), len(scores) - 1) + 1)
    factors = (total - certain) / sums[len(scores) - 1 - certain]
    fits = factors * rising[len(scores) - 1 - certain] <= 1 + 1e-12
    return np.minimum(1.0, float(factors[int(np.argmax(fits))]) * scores)


def _drawn(
    chances: dict[str, Float[np.ndarray, " _"]],
    scores: dict[str, Float[np.ndarray, " _"]],
    key: Key[Array, ""],
) -> ParameterSample:
    """Systematic sampling of each parameter: its entries in random order lie side by side, each as
    long as its chance; a comb of unit spacing takes those that its teeth hit.
    """
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    entries, weights = {}, {}
    for name, chance in chances.items():
        count = min(_coarse(float(chance.sum())), len(chance))
        chance = _capped(scores[name], count)
        rng = np.random.default_rng([*seed, zlib.crc32(name.encode())])
        order = rng.permutation(len(chance))
        ends = np.cumsum(chance[order]) * (count / chance.sum())
        ends[-1] = count
        starts = np.concatenate([[0.0], ends[:-1]])
        tooth = rng.uniform()
        hit = np.ceil(ends - tooth) > np.ceil(starts - tooth)
        entries[name] = np.sort(order[hit])
        weights[name] = (1 / chance[entries[name]]).astype(np.float32)
    return ParameterSample(
        entries=entries, weights=weights, num_projections=sum(map(len, entries.values()))
    )


def _coarse(count: float) -> int:
    """The nearest of 1, 2, …, 16, 18, 20, …, 32, 36, 40, …: eight steps a factor of two."""
    step = max(1, 1 << max(0, int(np.log2(max(count, 1))) - 3))
    return max(1, step * round(count / step))


def _entries_of_product(
    activations: Float[Array, "n p k"],
    signals: Float[Array, "n c p o"],
    rows: Int[np.ndarray, " m"],
    columns: Int[np.ndarray, " m"],
    dtype: Any,
) -> Float[Array, "n c m"]:
    """Σ_p A[·, p, rows]·δ[·, ·, p, columns], some entries at a time."""
    num_samples, num_outputs, num_positions, _ = signals.shape
    size = max(1, _CHUNK_NUMBERS // (num_samples * num_outputs * num_positions))
    parts = []
    for start in range(0, len(rows), size):
        chosen = slice(start, start + size)
        parts.append(
            jnp.einsum(
                "npm,ncpm->ncm",
                jnp.take(activations, rows[chosen], axis=2),
                jnp.take(signals, columns[chosen], axis=3),
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=dtype,
            )
        )
    return jnp.concatenate(parts, axis=2)
