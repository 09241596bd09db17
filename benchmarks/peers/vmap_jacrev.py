"""Θ as most people would write it in JAX: `vmap(jacrev)` and one matrix product a parameter.

python -m benchmarks.peers.vmap_jacrev --network resnet20 --num-samples 100
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.common import arguments, images, run
from benchmarks.peers.jax_functional import load


def main() -> None:
    given = arguments(__doc__)
    apply, params = load(
        given.network, given.num_outputs, convolutions=given.convolutions, seed=given.seed
    )
    x = jnp.asarray(images(given.network, given.num_samples, given.seed))

    @jax.jit
    def ntk(params, x):
        jacobian = jax.vmap(jax.jacrev(lambda params, x: apply(params, x[None])[0]), (None, 0))(
            params, x
        )
        rows = [
            leaf.reshape(given.num_samples * given.num_outputs, -1)
            for leaf in jax.tree_util.tree_leaves(jacobian)
        ]
        return sum(leaf @ leaf.T for leaf in rows)

    run("vmap_jacrev", given, lambda: np.asarray(ntk(params, x)), "jax", "jaxlib")


if __name__ == "__main__":
    main()
