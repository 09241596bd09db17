"""The Jacobian of any JAX function, from activations and back-propagated signals.

Comes in: `apply(params, inputs)`. Goes out: J, its products, and its layers, in which gradients
need not be formed.
"""
