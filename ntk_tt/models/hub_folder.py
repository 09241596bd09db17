"""A text encoder as the hub lays it out: a folder with `config.json`, weights, `tokenizer.json`."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from ntk_tt.models.catalogue import MODELS
from ntk_tt.models.heads import HeadRule, check_head_rule, head_values, replaced
from ntk_tt.models.hub import NAMES, fetch_folder
from ntk_tt.models.model import Model, from_nnx, set_values
from ntk_tt.models.stored import quoted, reason
from ntk_tt.models.tokenizer import read_tokenizer
from ntk_tt.models.weights import Checkpoint, fit_weights, read_checkpoint
from ntk_tt.models.zoo.text_encoder import ACTIVATIONS, EncoderSizes, Pooling, TextEncoder
from ntk_tt.runtime.parameter_names import named_leaves

_MOST_BYTES = 1 << 20  # of a configuration
_MOST = 1 << 24  # of any size in it
_FIRST_POSITIONS = {"bert": 0, "distilbert": 0, "roberta": 2, "xlm-roberta": 2, "camembert": 2}

# DistilBERT's names and the oldest files', as BERT's.
_RENAMED = (
    (r"^transformer\.layer\.", "encoder.layer."),
    (r"\.attention\.q_lin\.", ".attention.self.query."),
    (r"\.attention\.k_lin\.", ".attention.self.key."),
    (r"\.attention\.v_lin\.", ".attention.self.value."),
    (r"\.attention\.out_lin\.", ".attention.output.dense."),
    (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.ffn\.lin1\.", ".intermediate.dense."),
    (r"\.ffn\.lin2\.", ".output.dense."),
    (r"\.output_layer_norm\.", ".output.LayerNorm."),
    (r"_embeddings\.kernel$", "_embeddings.embedding"),
    (r"\.gamma$", ".scale"),
    (r"\.beta$", ".bias"),
)


def is_hub_folder(name: str) -> bool:
    """Whether the name of a network means such a folder, here or on the hub."""
    if name in MODELS:
        return False
    return name.startswith(("hf-folder:", "hf:")) or (Path(name) / "config.json").is_file()


def load_hub_folder(
    name: str,
    *,
    num_classes: int | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    key: Key[Array, ""] | None = None,
    head: HeadRule = "pytorch",
) -> Model:
    """A pre-trained text encoder with a new head.

    Args:
        name: `hf-folder:PATH` or the path alone, or `hf:owner/name`, which is fetched into the
            hub's own cache.
        num_classes: outputs of the new head; None for a network without head.
        pooling: what a text is to the head, the `mean` of its tokens or the `first` one; None takes
            what the folder says (`1_Pooling/config.json`), else the mean.
        max_length: most tokens of a text; None takes what its tokenizer says, else 128.
        key: of the head; key 0 where none is given.
        head: how it starts, see `ntk_tt.models.heads.head_values`.

    Returns:
        A `Model` of texts: `preprocess` makes tokens of them, `apply` takes those.

    Raises:
        ValueError: a file is missing or not what it should be, the encoder is of another kind, or
            its weights do not fit its configuration.
    """
    check_head_rule(head)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes: must be at least 1, got {num_classes}")
    folder = _folder(name)
    config = _json(folder / "config.json")
    sizes = sizes_of(config, str(folder))
    pooling = pooling or _pooling(folder)
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling: unknown {pooling!r}; give 'mean' or 'first'")
    padding = config.get("pad_token_id")
    tokenize = read_tokenizer(
        folder / "tokenizer.json",
        longest=sizes.longest,
        max_length=max_length,
        padding=padding if isinstance(padding, int) and 0 <= padding < sizes.vocabulary else 0,
    )
    module = nnx.eval_shape(
        lambda: TextEncoder(num_classes, sizes=sizes, pooling=pooling, rngs=nnx.Rngs(0))
    )
    template = nnx.to_pure_dict(nnx.state(module))
    found = _arrays(folder, set(named_leaves(template)))
    values = fit_weights(
        template,
        found.arrays,
        source=repr(str(folder)),
        fresh=() if num_classes is None else ("head",),
    )
    if num_classes is not None:
        key = jax.random.key(0) if key is None else key
        values = replaced(values, "head", head_values(head, sizes.width, num_classes, key))
    set_values(module, values)
    model = from_nnx(
        module,
        name=folder.resolve().name if not name.startswith("hf:") else name.removeprefix("hf:"),
        num_classes=num_classes or 0,
        head="" if num_classes is None else "head",
        note=found.note,
    )
    return dataclasses.replace(model, tokenize=tokenize)


def sizes_of(config: dict[str, Any], source: str) -> EncoderSizes:
    """The sizes that a `config.json` gives.

    Raises:
        ValueError: it is of another kind of network, or a size is missing or none.
    """
    kind = config.get("model_type")
    if kind not in _FIRST_POSITIONS:
        raise ValueError(
            f"model: {quoted(source)} holds a network of type {quoted(kind)}; known are "
            f"{', '.join(_FIRST_POSITIONS)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(
            f"model: {quoted(source)} has {quoted(config['position_embedding_type'])} positions; "
            "only absolute ones are known"
        )

    def size(*names: str, least: int = 1) -> int:
        value = next((config[each] for each in names if each in config), None)
        if type(value) is not int or not least <= value <= _MOST:
            raise ValueError(
                f"model: the config.json of {quoted(source)} has {names[0]!r} {quoted(value)}, "
                f"which must be a number of at least {least}; download it again"
            )
        return value

    activation = config.get("hidden_act", config.get("activation", "gelu"))
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"model: {quoted(source)} has the activation {quoted(activation)}; known are "
            f"{', '.join(ACTIVATIONS)}"
        )
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float | int) or not 0 <= epsilon < 1:
        raise ValueError(
            f"model: the config.json of {quoted(source)} has 'layer_norm_eps' {quoted(epsilon)}; "
            "download it again"
        )
    found = EncoderSizes(
        vocabulary=size("vocab_size"),
        width=size("hidden_size", "dim"),
        depth=size("num_hidden_layers", "n_layers"),
        num_heads=size("num_attention_heads", "n_heads"),
        hidden=size("intermediate_size", "hidden_dim"),
        positions=size("max_position_embeddings", least=4 + _FIRST_POSITIONS[kind]),
        types=0 if kind == "distilbert" else size("type_vocab_size", least=0),
        epsilon=float(epsilon),
        activation=activation,
        first_position=_FIRST_POSITIONS[kind],
    )
    if found.width % found.num_heads or found.depth > 1000:
        raise ValueError(
            f"model: the config.json of {quoted(source)} has {found.depth} layers of width "
            f"{found.width} and {found.num_heads} heads, which no encoder has; download it again"
        )
    return found


def _folder(name: str) -> Path:
    if name.startswith("hf:"):
        return fetch_folder(name.removeprefix("hf:"))
    folder = Path(name.removeprefix("hf-folder:"))
    if not folder.is_dir():
        raise ValueError(
            f"model: there is no folder {str(folder)!r}; give hf-folder:PATH with config.json, "
            "model.safetensors and tokenizer.json in it"
        )
    return folder


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("it has more than 1 MiB")
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else reason(error)
        raise ValueError(
            f"model: {quoted(file)} cannot be read ({said}); give the folder as the hub has it"
        ) from error
    return found


def _pooling(folder: Path) -> Pooling:
    """What the folder says of it."""
    file = folder / "1_Pooling" / "config.json"
    return "first" if file.is_file() and _json(file).get("pooling_mode_cls_token") else "mean"


def _arrays(folder: Path, names: set[str]) -> Checkpoint:
    """The encoder's weights by our names; what else the file holds, such as the head of its
    pre-training, is left out.
    """
    there = [name for name in NAMES if (folder / name).is_file()]
    if not there:
        raise ValueError(
            f"model: {quoted(folder)} has none of {', '.join(NAMES)}; give the folder as the hub "
            "has it"
        )
    found = read_checkpoint(folder / there[0], names, _own_name)
    arrays: dict[str, np.ndarray] = {}
    beside = []
    for name, array in found.arrays.items():
        own = _own_name(name)
        # a table's rows are tokens; matrices came transposed
        array = array.T if own != name and own.endswith("_embeddings.embedding") else array
        if own in names:
            arrays[own] = array
        elif own.startswith("encoder."):
            arrays[own] = array  # of another depth: that does not fit
        elif own != "embeddings.position_ids":
            beside.append(name)
    note = f"left out of the checkpoint: {', '.join(map(quoted, beside[:4]))}" if beside else ""
    return found._replace(arrays=arrays, note="; ".join(filter(None, [found.note, note])))


def _own_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
