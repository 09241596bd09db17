"""Texts to tokens, by the `tokenizer.json` of a published encoder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_tt.models.stored import quoted, reason
from ntk_tt.runtime.input_trees import Tokens

USUAL_LENGTH = 128  # most tokens of a text, where neither file nor user says


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """`texts -> Tokens`, padded on the right to the longest of them.

    Attributes:
        inner: of the `tokenizers` package.
        max_length: most tokens; longer texts are cut.
        padding: number of the token that fills up.
    """

    inner: Any
    max_length: int
    padding: int = 0

    def __call__(self, texts: Sequence[str] | np.ndarray) -> Tokens:
        found = self.inner.encode_batch([str(text) for text in texts])
        longest = max((len(each.ids) for each in found), default=1)
        numbers = np.full((len(found), max(1, longest)), self.padding, np.int32)
        mask = np.zeros(numbers.shape, np.int32)
        for row, each in enumerate(found):
            numbers[row, : len(each.ids)] = each.ids
            mask[row, : len(each.ids)] = 1
        return Tokens(input_ids=numbers, attention_mask=mask)


def read_tokenizer(
    file: Path, *, longest: int, max_length: int | None = None, padding: int = 0
) -> Tokenizer:
    """The tokenizer that a file describes.

    Args:
        longest: most tokens that the network takes.
        max_length: most tokens of a text; None takes what the file says, else `USUAL_LENGTH`.
        padding: number of the token that fills up.

    Raises:
        ValueError: the `tokenizers` package is not installed, the file is missing or none of its
            own, or `max_length` is out of range.
    """
    if max_length is not None and not 3 <= max_length <= longest:
        raise ValueError(
            f"max-length: must lie in 3 … {longest}, the most that this network takes, got "
            f"{max_length}"
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "model: texts need the tokenizers package; install it with: pip install 'ntk-tt[text]'"
        ) from error
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # of the package, for whatever the file holds
        raise ValueError(
            f"model: {quoted(file)} is not a readable tokenizer ({reason(error)}); download it "
            "again; of a model without one, save it by transformers' AutoTokenizer"
        ) from error
    said = (inner.truncation or {}).get("max_length", USUAL_LENGTH)
    length = min(said, longest) if max_length is None else max_length
    inner.no_padding()
    inner.enable_truncation(length)
    return Tokenizer(inner, length, padding)
