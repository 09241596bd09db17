#!/usr/bin/env bash
# What a prediction costs on one GPU: at most 10 minutes, then the rest in another call.
#
#     make gpu-data                    # once, where the images and weights are: benchmarks/gpu-data
#     bash benchmarks/gpu.sh           # writes benchmarks/results/gpu.json, or $OUT/gpu.json
#     bash benchmarks/gpu.sh --tiny    # a minute on a CPU: does it run?
#
# It downloads nothing. Measurements that the results have already are left out, so an interrupted
# run goes on where it was. PYTHON names the interpreter that has JAX.
set -euo pipefail
cd "$(dirname "$0")/.."
exec timeout "${LIMIT:-600}" "${PYTHON:-python3}" -m benchmarks.gpu "$@"
