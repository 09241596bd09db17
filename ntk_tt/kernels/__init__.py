"""The neural tangent kernel Θ = J Jᵀ: exact, from features, over devices, or streamed from disk;
and its spectrum.

Comes in: a network, or features. Goes out: Θ as a matrix or an operator, its eigenvalues and
projections.
"""
