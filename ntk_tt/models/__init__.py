"""Networks and their weights: `load_model` by name, `from_nnx` for your own."""

from ntk_tt.models.catalogue import MODELS, Architecture, ModelRow, list_models
from ntk_tt.models.heads import fit_linear_head, with_new_head
from ntk_tt.models.load import load_model
from ntk_tt.models.model import Model, from_nnx
from ntk_tt.models.weights import read_weights, save_weights

__all__ = [
    "MODELS",
    "Architecture",
    "Model",
    "ModelRow",
    "fit_linear_head",
    "from_nnx",
    "list_models",
    "load_model",
    "read_weights",
    "save_weights",
    "with_new_head",
]
