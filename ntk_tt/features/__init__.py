"""What is kept of the Jacobian: features Φ = J R, computed in planned blocks, in memory or on disk.

Comes in: a network and its samples. Goes out: Φ (N, C, D'), or a store of it that can be resumed.
"""
