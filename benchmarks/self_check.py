"""What looking at two samples costs beside a pass over 100 of them, in processor seconds.

    python -m benchmarks.self_check [--models resnet8 vit_s_16] [--classes 3 10]

Medians of several runs, compilation apart; the outputs are the C−1 contrasts that cross-entropy
sees, as in `ntk-tt predict`.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from ntk_tt import load_model
from ntk_tt.features.compute import compute_features
from ntk_tt.features.contrasts import contrast_basis, in_contrasts
from ntk_tt.features.plan import plan_features
from ntk_tt.jacobian.self_check import check_pass

SAMPLES, REPEATS = 100, 5


def processor_seconds(call: Callable[[], object]) -> float:
    """Of all threads."""
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start


def measure(name: str, num_classes: int) -> dict[str, float]:
    """Medians of a pass and of its check, and what each takes to compile, in processor seconds."""
    model = load_model(name, num_classes=num_classes)
    inputs = np.asarray(
        jax.random.normal(jax.random.key(0), (SAMPLES, model.image_size, model.image_size, 3))
    )
    apply = in_contrasts(model.apply, contrast_basis(num_classes))
    first_check = processor_seconds(lambda: check_pass(apply, model.params, inputs))
    start = time.process_time()
    plan = plan_features(apply, model.params, inputs)
    compile_pass = time.process_time() - start
    compute_features(plan, model.params, inputs).block_until_ready()
    check, whole = (
        float(np.median([processor_seconds(call) for _ in range(REPEATS)]))
        for call in (
            lambda: check_pass(apply, model.params, inputs),
            lambda: compute_features(plan, model.params, inputs),
        )
    )
    return {
        "check": check,
        "pass": whole,
        "share": check / whole,
        "compile check": first_check - check,
        "compile pass": compile_pass,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet8", "resnet20", "mlp"])
    parser.add_argument("--classes", nargs="+", type=int, default=[3, 5, 10])
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(
        f"{'network':12s} {'classes':>7s} {'check':>9s} {'pass':>9s} {'share':>7s} "
        f"{'compiling: check':>17s} {'pass':>7s}"
    )
    for name in options.models:
        for num_classes in options.classes:
            found = measure(name, num_classes)
            print(
                f"{name:12s} {num_classes:7d} {found['check']:8.3f}s {found['pass']:8.2f}s "
                f"{found['share']:7.1%} {found['compile check']:16.1f}s "
                f"{found['compile pass']:6.1f}s",
                flush=True,
            )


if __name__ == "__main__":
    main()
