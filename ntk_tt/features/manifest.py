"""What features are of: a manifest of everything that their numbers depend on, and its identity."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from ntk_tt.jacobian import jaxpr as jaxprs
from ntk_tt.jacobian.network import Apply, logits_of
from ntk_tt.runtime.input_trees import Inputs, num_samples, take

FORMAT = 4  # raise it when the files change, or what a projection makes of the same key
DTYPES = ("float64", "float32", "float16", "bfloat16")
# settings of JAX that change bits
_ARITHMETIC = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
)


def describe(
    apply: Apply,
    params: PyTree,
    inputs: Inputs,
    *,
    num_projections: int,
    projection: str,
    key: Key[Array, ""] | None,
    block_size: int,
    dtype: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a feature set: everything its numbers depend on, as JSON values.

    Weights and inputs count with every bit; the network as the jaxpr of its logits and of their
    vector-Jacobian product (which holds custom derivative rules too) and all constants closed over,
    such as frozen batch-norm statistics. Not seen: what a Python callback inside the network
    computes.

    Args:
        apply: pure `(params, inputs) -> logits (N, C)`.
        params: w₀.
        inputs: (N, ...).
        num_projections: D', a number; from D on, the features are the Jacobian and neither
            projection nor key counts.
        projection: its name.
        key: of the projection; key 0 where none is given.
        block_size: samples in a block.
        dtype: of the features; None is the parameters' own.
        settings: whatever else the computation depends on (the path, a matmul precision), JSON
            values by name.

    Raises:
        ValueError: no samples, a block size or dimension below 1, a dtype that cannot be stored, a
            setting that is not JSON.

    Cost: one pass over the bytes of weights and inputs, and two traces of the network; nothing is
    compiled.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    num_params = sum(leaf.size for _, leaf in leaves)
    for name, value in (
        ("inputs", num_samples(inputs)),
        ("num_projections", num_projections),
        ("block_size", block_size),
    ):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    name = jnp.dtype(
        jnp.result_type(*(leaf for _, leaf in leaves)) if dtype is None else dtype
    ).name
    if name not in DTYPES:
        raise ValueError(
            f"dtype: features cannot be stored as {name}; give one of {', '.join(DTYPES)}"
        )
    exact = num_projections >= num_params
    key = jax.random.key(0) if key is None else key
    num_outputs, network = _network(apply, params, take(inputs, slice(1)))
    manifest = {
        "format": FORMAT,
        "num_samples": num_samples(inputs),
        "num_outputs": num_outputs,
        "num_params": num_params,
        "num_projections": min(num_projections, num_params),
        "block_size": min(block_size, num_samples(inputs)),
        "dtype": name,
        "projection": "identity" if exact else projection,
        "key": None
        if exact
        else {
            "kind": str(jax.random.key_impl(key)),
            "data": np.asarray(jax.random.key_data(key)).tolist(),
        },
        "weights": {jax.tree_util.keystr(path): _fingerprint(leaf) for path, leaf in leaves},
        "inputs": _fingerprints(inputs),
        "network": network,
        "settings": dict(settings or {}),
        "arithmetic": {
            "platform": jax.default_backend(),
            **{name: getattr(jax.config, name) for name in _ARITHMETIC},
        },
        "versions": {"ntk_tt": _own_version(), "jax": jax.__version__},
    }
    try:
        return json.loads(json.dumps(manifest, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: must be JSON values ({error}), got {settings!r}") from error


def identity(manifest: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that differ where any entry of the manifest does."""
    return digest(json.dumps(manifest, sort_keys=True).encode())


def _network(apply: Apply, params: PyTree, sample: Inputs) -> tuple[int, str]:
    """C, and the digest of what the network computes from weights and a sample."""

    def logits_and_gradient(params, sample):
        logits, pullback = jax.vjp(lambda params: logits_of(apply, params, sample), params)
        return logits, pullback(jnp.ones_like(logits))

    closed = jaxprs.trace(logits_and_gradient, params, sample)
    constants = " ".join(_fingerprint(value) for value in jaxprs.constants(closed))
    return jaxprs.result_shapes(closed)[0][1], digest(f"{jaxprs.text(closed)} {constants}".encode())


def _fingerprints(tree: Inputs) -> Any:
    """Of an array a text, of a tree one for each name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = {jax.tree_util.keystr(path): _fingerprint(leaf) for path, leaf in leaves}
    return found[""] if list(found) == [""] else found


def _fingerprint(array: Any) -> str:
    """`float32[3,3] 1f…`: dtype, shape and digest of the bytes."""
    dtype = getattr(array, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    bytes_ = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}] {digest(bytes_)}"


def new_hash() -> "hashlib.blake2b":
    """Detects damage and tells feature sets apart; no defence against forgery is meant."""
    return hashlib.blake2b(digest_size=16)


def digest(data: Any) -> str:
    """32 hexadecimal digits of some bytes."""
    total = new_hash()
    total.update(data)
    return total.hexdigest()


def _own_version() -> str:
    try:
        return version("ntk-tt")
    except PackageNotFoundError:
        return "0+unknown"
