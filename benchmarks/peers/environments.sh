#!/bin/sh
# The virtual environments of the peers that need their own: benchmarks/.environments/torch and /neural-tangents (about 3 GB).
#   sh benchmarks/peers/environments.sh [torch|neural-tangents]        PYTHON=python3.11 chooses another interpreter
# On Linux, PyPI's torch brings CUDA; for the smaller CPU build: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -eu
peers=$(dirname "$0")
for name in ${1:-torch neural-tangents}; do
    environment=$peers/../.environments/$name
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --requirement "$peers/requirements-$name.txt"
    echo "$name: $("$environment/bin/python" --version)"
done
