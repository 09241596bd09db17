"""Other ways to the exact Θ of the same network, each a command of its own: `python -m
benchmarks.peers.X --help`.

They share this project's networks and measuring (`common`, `jax_functional`: numpy, safetensors and
any JAX), and nothing of `ntk_tt` but in `ours`; `environments.sh` makes the virtual environments
that two of them need.
"""
