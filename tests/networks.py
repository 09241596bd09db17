"""Small networks that every test of features and kernels runs over, and an independent dense
oracle.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntk_tt.models import from_nnx


class Case(NamedTuple):
    apply: Callable
    params: Any
    inputs: Callable[[int, int], jax.Array]  # (number, seed) -> inputs


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
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    params = [
        {"weight": jax.random.normal(key, (a, b), dtype), "bias": jnp.zeros(b, dtype)}
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]

    def apply(params, x):
        for index, layer in enumerate(params):
            x = x @ layer["weight"] / np.sqrt(layer["weight"].shape[0]) + layer["bias"]
            x = jnp.tanh(x) if index < len(params) - 1 else x
        return x

    return Case(
        apply,
        params,
        lambda number, s: jax.random.normal(jax.random.key(100 + s), (number, inputs), dtype),
    )


class _ConvNet(nnx.Module):
    def __init__(self, num_outputs: int, norm: bool, *, rngs: nnx.Rngs, dtype):
        self.conv1 = nnx.Conv(2, 6, (3, 3), strides=2, rngs=rngs, param_dtype=dtype)
        self.conv2 = nnx.Conv(6, 6, (3, 3), feature_group_count=2, rngs=rngs, param_dtype=dtype)
        self.norm = nnx.BatchNorm(6, rngs=rngs, param_dtype=dtype) if norm else None
        self.head = nnx.Linear(6, num_outputs, rngs=rngs, param_dtype=dtype)
        if self.norm is not None:  # statistics and scales that a wrong treatment of them would show
            self.norm.mean[...] = jnp.linspace(-0.2, 0.3, 6, dtype=dtype)
            self.norm.var[...] = jnp.linspace(0.5, 1.5, 6, dtype=dtype)
            self.norm.scale[...] = jnp.linspace(0.7, 1.4, 6, dtype=dtype)

    def __call__(self, x):
        x = self.conv2(jax.nn.gelu(self.conv1(x)))
        x = jax.nn.gelu(x if self.norm is None else self.norm(x))
        return self.head(x.mean(axis=(1, 2)))


def convolutional(num_outputs: int, *, norm: bool, seed: int = 0, dtype=jnp.float32) -> Case:
    model = from_nnx(_ConvNet(num_outputs, norm, rngs=nnx.Rngs(seed), dtype=dtype))
    return Case(
        model.apply,
        model.params,
        lambda number, s: jax.random.normal(jax.random.key(100 + s), (number, 6, 6, 2), dtype),
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
    rows, outputs = [], 0
    for x in inputs:
        outputs = case.apply(case.params, x[None]).shape[1]
        for output in range(outputs):
            gradient = jax.grad(
                lambda params, x=x, output=output: case.apply(params, x[None])[0, output]
            )(case.params)
            rows.append(
                np.concatenate(
                    [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
                )
            )
    return np.stack(rows).reshape(len(inputs), outputs, -1)


def dense_ntk(case: Case, x1, x2) -> np.ndarray:
    return np.einsum("iad,jbd->iajb", dense_jacobian(case, x1), dense_jacobian(case, x2))
