"""The model that is trained instead of the network: linear in all weights, or with the network's
real head.

Comes in: logits and features at the pre-trained weights. Goes out: a problem that the dynamics
train, and its sharpness.
"""
