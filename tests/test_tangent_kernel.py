"""Θ of a small network at one state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.kernels.operators import AbstractKernel
from ntk_tt.surrogate.tangent_kernel import TangentKernel


@pytest.mark.slow_but("12-*")
@pytest.mark.parametrize("scale", ["none", "of each number", "one, made in the program"])
@pytest.mark.parametrize("num_samples", [12, 600])  # XLA fuses otherwise where there are many
def test_squares_of_samples_are_those_of_the_diagonal_blocks(num_samples, scale):
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    width, num_outputs, size = 97, 20, 16
    jacobians, shares = (array(num_samples, 4, size), array(num_samples, 4, size)), (1.0, 0.7)
    read = array(num_samples, 4, num_outputs)
    of_head = np.abs(array(width, num_outputs)) if scale == "of each number" else np.float32(1.3)
    bend, slope = array(num_samples, num_outputs), array(size)
    head, root = array(num_samples, width), np.abs(array(size))
    parts = (jacobians, shares, read, bend, slope, head, root, of_head)
    kernel = TangentKernel(*jax.tree.map(jnp.asarray, parts))
    residuals = array(num_samples, num_outputs)
    gradients = np.einsum("nc,nc,d->nd", residuals, bend, slope, dtype=np.float64)
    for jacobian, share in zip(jacobians, shares, strict=True):
        gradients += share * np.einsum("nc,nkc,nkd->nd", residuals, read, jacobian, optimize=True)
    of_outputs = np.einsum("nf,nc->nfc", head, residuals, dtype=np.float64) * of_head
    expected = np.square(root * gradients).sum(1) + np.square(of_outputs).sum((1, 2))

    def in_a_program(way, kernel, residuals, of_head):
        if scale.startswith("one"):
            whole = jnp.broadcast_to(of_head, (width, num_outputs))
            kernel = dataclasses.replace(kernel, of_head=whole)
        return way(kernel, residuals)

    for way in (TangentKernel.sample_squares, AbstractKernel.sample_squares):
        for each in (kernel, kernel, kernel, kernel.in_one()):  # what was wrong came and went
            found = jax.jit(in_a_program, static_argnums=0)(
                way, each, jnp.asarray(residuals), jnp.asarray(of_head)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-4)
    products = [each.product(jnp.asarray(residuals)) for each in (kernel, kernel.in_one())]
    np.testing.assert_allclose(*products, rtol=1e-4, atol=1e-3 * np.abs(products[0]).max())
