"""Real fine-tuning with optax: the truth that predictions are compared with.

Comes in: a network, data, an optimiser. Goes out: the curve of a real run. Shares no code with the
prediction: of the package it imports only the description of the optimiser, the model container and
its switches, the reading of labels, the memory there is and the progress bar. Its losses, batches
and steps are optax's and its own.
"""

from ntk_tt.training.course import TrainingRun, finetune

__all__ = ["TrainingRun", "finetune"]
