"""Products of a kernel that lies over devices, on one of them, are those of the dense one; what
several do is in `test_sharding`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.kernels.sharded import sharded_kernel
from ntk_tt.runtime.sharding import sample_mesh


@pytest.mark.parametrize("dual", [False, True])
def test_products_are_those_of_the_dense_kernel(dual):
    rng = np.random.default_rng(0)
    features, residuals = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 2))
    ntk = np.einsum("iad,jbd->iajb", features, features)
    kernel = sharded_kernel(
        jnp.asarray(features, jnp.float32), 5, sample_mesh(jax.devices()[:1]), dual=dual
    )
    rows = np.array([3, 0, 3])

    @jax.jit
    def products(residuals, few):
        state, of_few = kernel.pull(residuals), kernel.pull_rows(few, jnp.asarray(rows))
        return (
            kernel.push(state),
            kernel.push_rows(state, jnp.asarray(rows)),
            kernel.push(of_few),
            kernel.diagonal_blocks(),
        )

    found = products(jnp.asarray(residuals, jnp.float32), jnp.asarray(residuals[:3], jnp.float32))
    whole = np.einsum("iajb,jb->ia", ntk, residuals)
    expected = (
        whole,
        whole[rows],
        np.einsum("iajb,jb->ia", ntk[:, :, rows], residuals[:3]),
        np.stack([ntk[each, :, each] for each in range(5)]),
    )
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
    assert kernel.space == ("dual" if dual else "primal")
    assert kernel.zero().shape == ((5, 2) if dual else (3,))
