"""Θ by neural-tangents' `empirical_ntk_fn`, in an environment of its own (see `environments.sh`).

    benchmarks/.environments/neural-tangents/bin/python \\
        -m benchmarks.peers.neural_tangents_peer --implementation structured

`structured` is its structured derivatives, `default` what it takes unless told otherwise (Jacobian
contraction). Samples are declared independent (`vmap_axes=0`), which spares it the zero blocks of
the Jacobian; no axis is traced.
"""

import importlib

import jax
import jax.interpreters.ad
import jax.numpy as jnp
import neural_tangents
import numpy as np

from benchmarks.peers.common import arguments, images, run
from benchmarks.peers.jax_functional import load

# Structured derivatives reach for two names that JAX 0.5 no longer re-exports; the default needs
# neither.
for _name, _value in (
    ("source_info_util", importlib.import_module("jax._src.source_info_util")),
    ("config", jax.config),
):
    setattr(jax.interpreters.ad, _name, _value)


def main() -> None:
    given = arguments(__doc__)
    apply, params = load(
        given.network, given.num_outputs, convolutions=given.convolutions, seed=given.seed
    )
    x = jnp.asarray(images(given.network, given.num_samples, given.seed))
    chosen = (
        {"implementation": neural_tangents.NtkImplementation.STRUCTURED_DERIVATIVES}
        if given.implementation == "structured"
        else {}
    )
    kernel = neural_tangents.empirical_ntk_fn(
        lambda params, x: apply(params, x), trace_axes=(), vmap_axes=0, **chosen
    )
    ntk = jax.jit(lambda x, params: kernel(x, None, params))

    def measured() -> np.ndarray:
        return np.asarray(ntk(x, params)).transpose(0, 2, 1, 3)  # it gives (N, N, C, C)

    run(
        f"neural_tangents_{given.implementation}",
        given,
        measured,
        "neural-tangents",
        "jax",
        "jaxlib",
    )


if __name__ == "__main__":
    main()
