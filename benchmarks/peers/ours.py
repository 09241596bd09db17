"""Θ by `ntk_tt.kernels.empirical_ntk`, on the same `apply` as the JAX peers.

python -m benchmarks.peers.ours --network resnet20 --num-samples 100
"""

import numpy as np

import ntk_tt
from benchmarks.peers.common import arguments, images, run
from benchmarks.peers.jax_functional import load


def main() -> None:
    given = arguments(__doc__)
    apply, params = load(
        given.network, given.num_outputs, convolutions=given.convolutions, seed=given.seed
    )
    x = images(given.network, given.num_samples, given.seed)
    run(
        "ours",
        given,
        lambda: np.asarray(ntk_tt.kernels.empirical_ntk(apply, params, x)),
        "ntk-tt",
        "jax",
        "jaxlib",
    )


if __name__ == "__main__":
    main()
