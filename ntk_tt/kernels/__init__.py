"""The neural tangent kernel Θ = J Jᵀ: exact, from features, over devices, or streamed from disk;
and its spectrum.

Comes in: a network, or features. Goes out: Θ as a matrix or an operator, its eigenvalues and
projections.
"""

from ntk_tt.kernels.empirical import empirical_ntk, ntk_from_features
from ntk_tt.kernels.operators import AbstractKernel, ContrastKernel, DualKernel, PrimalKernel
from ntk_tt.kernels.sharded import sharded_kernel
from ntk_tt.kernels.spectrum import Spectrum, fit_power_law, ntk_spectrum
from ntk_tt.kernels.streaming import StreamedKernel

__all__ = [
    "AbstractKernel",
    "ContrastKernel",
    "DualKernel",
    "PrimalKernel",
    "Spectrum",
    "StreamedKernel",
    "empirical_ntk",
    "fit_power_law",
    "ntk_from_features",
    "ntk_spectrum",
    "sharded_kernel",
]
