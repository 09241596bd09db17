"""What Θ costs at least: forward and backward passes, and the machine's speed at a matrix product.

    python -m benchmarks.peers.floor --network resnet20 --num-samples 100

`forward_and_vjp` is one vector-Jacobian product summed over the samples, the cheapest backward pass
there is: it never forms a gradient of one sample. Two floors are made from it, without and with
repeated forward passes:

    contrasts  forward + (C−1)·(forward_and_vjp − forward)    cross-entropy sees C−1 directions
    vjps       C·forward_and_vjp

`gemm_at_peak` is 2·(N·C)²·D flops at the speed of a 4096³ float32 product, what Θ = J Jᵀ takes
beyond the Jacobian (half of it where symmetry is used); `read_at_peak` is one pass over J (N·C·D
numbers) at the speed of a copy. Both clocks, wall and processor, are given everywhere.
"""

import concurrent.futures
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.common import arguments, images, measure, report
from benchmarks.peers.jax_functional import load

_GEMM = 4096
_COPY_BYTES = 256 << 20


def main() -> None:
    given = arguments(__doc__)
    apply, params = load(
        given.network, given.num_outputs, convolutions=given.convolutions, seed=given.seed
    )
    x = jnp.asarray(images(given.network, given.num_samples, given.seed))

    @jax.jit
    def forward_and_vjp(params, x):
        logits, pullback = jax.vjp(lambda params: apply(params, x), params)
        return pullback(jnp.zeros_like(logits).at[:, 0].set(1.0))

    forward = jax.jit(apply)
    rows = {
        "forward": measure(lambda: jax.block_until_ready(forward(params, x)), given)[1],
        "forward_and_vjp": measure(
            lambda: jax.block_until_ready(forward_and_vjp(params, x)), given
        )[1],
    }
    num_params = sum(leaf.size for leaf in jax.tree_util.tree_leaves(params))
    jacobian_rows = given.num_samples * given.num_outputs
    gemm, copy = gemm_clocks(given.repeats), copy_clocks(given.repeats)
    floors, gemm_at_peak, read_at_peak = {}, {}, {}
    for clock in ("seconds", "processor_seconds"):
        once, with_vjp = (rows[name][clock] for name in ("forward", "forward_and_vjp"))
        floors[clock] = {
            "contrasts": once + (given.num_outputs - 1) * (with_vjp - once),
            "vjps": given.num_outputs * with_vjp,
        }
        gemm_at_peak[clock] = gemm[clock] * jacobian_rows**2 * num_params / _GEMM**3
        read_at_peak[clock] = copy[clock] * 4 * jacobian_rows * num_params / (2 * _COPY_BYTES)
    report(
        "floor",
        given,
        {
            **rows,
            "floors": floors,
            "num_params": num_params,
            "gemm_at_peak": gemm_at_peak,
            "read_at_peak": read_at_peak,
            "gemm_flops_per_second": 2.0 * _GEMM**3 / gemm["seconds"],
            "copy_bytes_per_second": 2.0 * _COPY_BYTES / copy["seconds"],
        },
        "jax",
        "jaxlib",
    )


def gemm_clocks(repeats: int) -> dict[str, float]:
    """The best of XLA's and numpy's float32 matrix product, on all cores."""
    square = np.random.default_rng(0).normal(size=(_GEMM, _GEMM)).astype(np.float32)
    on_device, product = jnp.asarray(square), jax.jit(jnp.matmul)
    by_xla, by_numpy = (
        _best(lambda: jax.block_until_ready(product(on_device, on_device)), repeats),
        _best(lambda: square @ square, repeats),
    )
    return min(by_xla, by_numpy, key=lambda clocks: clocks["seconds"])


def copy_clocks(repeats: int) -> dict[str, float]:
    """A copy, which reads and writes `_COPY_BYTES`, one thread a core."""
    source = np.ones(_COPY_BYTES // 4, np.float32)
    target, cores = np.empty_like(source), os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
        return _best(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), repeats)


def _best(function: Callable, repeats: int) -> dict[str, float]:
    runs = []
    for _ in range(max(2, repeats) + 1):  # the first compiles, or touches the memory
        start, start_processor = time.perf_counter(), time.process_time()
        function()
        runs.append(
            {
                "seconds": time.perf_counter() - start,
                "processor_seconds": time.process_time() - start_processor,
            }
        )
    return min(runs[1:], key=lambda clocks: clocks["seconds"])


if __name__ == "__main__":
    main()
