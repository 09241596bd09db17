"""Networks and their weights: `load_model` by name, `from_nnx` for your own."""

from importlib import resources
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from ntk_tt.models.model import Model, from_nnx, set_values
from ntk_tt.models.resnet8 import ResNet8
from ntk_tt.models.weights import fit_weights, read_weights, save_weights

__all__ = ["MODELS", "Model", "from_nnx", "load_model", "read_weights", "save_weights"]

MODELS = {"resnet8": ResNet8}
_BUNDLED = {"resnet8": "resnet8_tiny_imagenet32.safetensors"}
_HEAD = "head"


def load_model(name: str = "resnet8", *, weights: str | None = "bundled", num_classes: int | None = None,
               image_size: int | None = None, key: Any = None) -> Model:
    """A network by name with pre-trained weights.

    Args:
        name: one of `MODELS`.
        weights: `bundled`, a safetensors file, `hf:owner/name`, or None for a random initialisation.
        num_classes: a new head of this many outputs, initialised from `key` as PyTorch does by default;
            None keeps the checkpoint's own head.
        image_size: side of the images it will see [pixels]; None takes the side it was trained on.
        key: a `jax.random.key` for whatever is initialised; key 0 where none is given.

    Raises:
        ValueError: unknown name, unreadable file, or weights that do not fit (the first mismatch is named).
    """
    if name not in MODELS:
        raise ValueError(f"model: unknown network {name!r}; known: {', '.join(MODELS)}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes: must be at least 1, got {num_classes}")
    if weights is None and num_classes is None:
        raise ValueError("num_classes: give the number of classes for a randomly initialised network")
    arrays, record = ({}, {}) if weights is None else read_weights(_weight_file(name, weights))
    outputs = num_classes
    if outputs is None:
        head = arrays.get(f"{_HEAD}.kernel")
        if head is None:
            raise ValueError(f"weights: {weights} has no {_HEAD + '.kernel'!r}; give num_classes for a new head")
        outputs = int(head.shape[-1])

    def initialised() -> nnx.Module:
        return MODELS[name](outputs, rngs=nnx.Rngs(jax.random.key(0) if key is None else key))

    if weights is None:
        module = initialised()
    else:
        # Shapes only, and only the head under jit: initialising what is then overwritten costs seconds of compilation.
        module = nnx.eval_shape(initialised)
        fresh = () if num_classes is None else (_HEAD,)
        values = fit_weights(nnx.to_pure_dict(nnx.state(module)), arrays, source=repr(weights), fresh=fresh)
        if fresh:
            values[_HEAD] = jax.jit(lambda: nnx.to_pure_dict(nnx.state(initialised()))[_HEAD])()
        set_values(module, values)
    return from_nnx(module, name=name, num_classes=outputs, image_size=image_size or record.get("image_size", 32))


def _weight_file(name: str, weights: str) -> Path:
    if weights == "bundled":
        return Path(str(resources.files(__name__) / "bundled" / _BUNDLED[name]))
    if not weights.startswith("hf:"):
        return Path(weights)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ValueError("weights: 'hf:' needs huggingface_hub; install it with: pip install 'ntk-tt[hub]'") from error
    repository = weights.removeprefix("hf:")
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the hub raises its own many kinds; every one means that the file cannot be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"weights: cannot get model.safetensors of {repository!r} from the hub ({reason}); check the name and the network") from error
