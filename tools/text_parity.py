"""What transformers computes for weights given by formula, as the reference of the text encoders.

    python -m venv .venv-text && .venv-text/bin/pip install torch transformers numpy
    .venv-text/bin/python -m tools.text_parity

Takes some seconds; writes tests/fixtures/text_parity.json, which `tests/test_text_encoder.py`
reads: for a small network of each family its configuration, the names and shapes of its state, and
the first token's and the mean state of two texts, one of which is padded.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests import parity

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "text_parity.json"
_SIZES = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 14,
}
TEXTS = [[5, 7, 9, 11, 29, 3, 8], [6, 6, 2, 12]]


def families() -> dict[str, tuple[Any, Any]]:
    """Of each family a configuration and the class of its networks."""
    return {
        "bert": (transformers.BertConfig(**_SIZES), transformers.BertModel),
        "bert for masked words": (
            transformers.BertConfig(**_SIZES, hidden_act="gelu_new"),
            transformers.BertForMaskedLM,
        ),
        "roberta": (
            transformers.RobertaConfig(**_SIZES, type_vocab_size=1, pad_token_id=1),
            transformers.RobertaForSequenceClassification,
        ),
        "distilbert": (
            transformers.DistilBertConfig(
                vocab_size=30,
                dim=12,
                n_layers=2,
                n_heads=3,
                hidden_dim=20,
                max_position_embeddings=14,
            ),
            transformers.DistilBertForSequenceClassification,
        ),
    }


def reference(config: Any, kind: Any) -> dict[str, Any]:
    """What a family's small network computes."""
    network = kind(config).eval()
    shapes, seen = {}, set()
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in seen:  # or tied to another
            shapes[name] = list(value.shape)
            seen.add(value.data_ptr())
    arrays = parity.parameters(shapes)
    network.load_state_dict(
        {name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False
    )
    longest = max(map(len, TEXTS))
    padding = config.pad_token_id or 0
    numbers = [text + [padding] * (longest - len(text)) for text in TEXTS]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS]
    with torch.no_grad():
        states = network.base_model(
            input_ids=torch.tensor(numbers), attention_mask=torch.tensor(mask)
        ).last_hidden_state
    kept = torch.tensor(mask)[:, :, None]
    return {
        "config": {
            name: value
            for name, value in config.to_dict().items()
            if isinstance(value, int | float | str) and not isinstance(value, bool)
        },
        "shapes": shapes,
        "input_ids": numbers,
        "attention_mask": mask,
        "first": states[:, 0].tolist(),
        "mean": ((states * kept).sum(1) / kept.sum(1)).tolist(),
    }


def main() -> None:
    found = {name: reference(*family) for name, family in families().items()}
    lines = [f" {json.dumps(name)}: {json.dumps(each)}" for name, each in found.items()]
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
