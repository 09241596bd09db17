"""The machine: memory, devices, files, progress, and how a run begins and ends.

Comes in: what the operating system and JAX say. Goes out: plans that fit, files that are whole,
lines that arrive.
"""
