"""Networks and their weights: `load_model` by name, `from_nnx` for your own."""

from ntk_tt.models.catalogue import MODELS, Architecture
from ntk_tt.models.load import load_model
from ntk_tt.models.model import Model, from_nnx
from ntk_tt.models.weights import read_weights, save_weights

__all__ = ["MODELS", "Architecture", "Model", "from_nnx", "load_model", "read_weights", "save_weights"]
