"""Small networks that every test of features and kernels runs over, and an independent dense
oracle.

Compilation is most of what tests cost. So numbers are drawn by numpy, each network is made once,
and the oracle compiles one program a network.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntk_tt.models import Model, from_nnx
from ntk_tt.models.adapters import from_function


class Case(NamedTuple):
    apply: Callable
    params: Any
    inputs: Callable[[int, int], jax.Array]  # (number, seed) -> inputs

    @property
    def model(self) -> Model:
        return from_function(self.apply, self.params)


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers, without a program compiled for each shape."""
    return jnp.asarray(np.asarray(np.random.default_rng(seed).normal(size=shape), dtype))


@functools.cache
def mlp(
    num_outputs: int,
    *,
    inputs: int = 6,
    width: int = 16,
    depth: int = 2,
    seed: int = 0,
    dtype=jnp.float32,
) -> Case:
    """tanh MLP in the NTK parametrisation: its kernel does not depend on the width."""
    sizes = [inputs] + [width] * depth + [num_outputs]
    params = [
        {
            "weight": normal(1000 * seed + layer, a, b, dtype=dtype),
            "bias": jnp.asarray(np.zeros(b, dtype)),
        }
        for layer, (a, b) in enumerate(itertools.pairwise(sizes))
    ]

    def apply(params, x):
        for index, layer in enumerate(params):
            x = x @ layer["weight"] / np.sqrt(layer["weight"].shape[0]) + layer["bias"]
            x = jnp.tanh(x) if index < len(params) - 1 else x
        return x

    return Case(
        apply,
        params,
        lambda number, s: normal(100 + s, number, inputs, dtype=dtype),
    )


def drawn(key, shape, dtype, out_sharding=None) -> jax.Array:
    """An initialiser of layers: as wide as LeCun's, the same for the same shape."""
    return normal(sum(shape), *shape, dtype=dtype) / np.sqrt(np.prod(shape[:-1])).astype(dtype)


class _ConvNet(nnx.Module):
    def __init__(self, num_outputs: int, norm: bool, *, rngs: nnx.Rngs, dtype):
        options = {"rngs": rngs, "param_dtype": dtype, "kernel_init": drawn}
        self.conv1 = nnx.Conv(2, 6, (3, 3), strides=2, **options)
        self.conv2 = nnx.Conv(6, 6, (3, 3), feature_group_count=2, **options)
        self.norm = nnx.BatchNorm(6, rngs=rngs, param_dtype=dtype) if norm else None
        self.head = nnx.Linear(6, num_outputs, **options)
        if self.norm is not None:  # statistics and scales that a wrong treatment of them would show
            self.norm.mean[...] = jnp.asarray(np.linspace(-0.2, 0.3, 6).astype(dtype))
            self.norm.var[...] = jnp.asarray(np.linspace(0.5, 1.5, 6).astype(dtype))
            self.norm.scale[...] = jnp.asarray(np.linspace(0.7, 1.4, 6).astype(dtype))

    def __call__(self, x):
        x = self.conv2(jax.nn.gelu(self.conv1(x)))
        x = jax.nn.gelu(x if self.norm is None else self.norm(x))
        return self.head(x.mean(axis=(1, 2)))


@functools.cache
def convolutional(num_outputs: int, *, norm: bool, seed: int = 0, dtype=jnp.float32) -> Case:
    model = from_nnx(_ConvNet(num_outputs, norm, rngs=nnx.Rngs(seed), dtype=dtype))
    return Case(
        model.apply,
        model.params,
        lambda number, s: normal(100 + s, number, 6, 6, 2, dtype=dtype),
    )


CASES = {
    "mlp": mlp,
    "convolution": lambda num_outputs, **more: convolutional(num_outputs, norm=False, **more),
    "batch-norm": lambda num_outputs, **more: convolutional(num_outputs, norm=True, **more),
}


def dense_jacobian(case: Case, inputs) -> np.ndarray:
    """(N, C, D) one output of one sample at a time, by `jax.grad`: shares nothing with the
    library.
    """

    @jax.jit
    def gradient(params, x, output):
        return jax.grad(lambda params: case.apply(params, x[None])[0, output])(params)

    outputs = jax.eval_shape(case.apply, case.params, inputs[:1]).shape[1]
    rows = [
        [
            np.asarray(leaf, np.float64).ravel()
            for leaf in jax.tree.leaves(gradient(case.params, x, output))
        ]
        for x in np.asarray(inputs)
        for output in range(outputs)
    ]
    return np.stack([np.concatenate(row) for row in rows]).reshape(len(inputs), outputs, -1)


def dense_ntk(case: Case, x1, x2) -> np.ndarray:
    return np.einsum("iad,jbd->iajb", dense_jacobian(case, x1), dense_jacobian(case, x2))
