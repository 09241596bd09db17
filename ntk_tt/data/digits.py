"""Reader of scikit-learn's handwritten digits."""

from typing import Any

import numpy as np
from PIL import Image

from ntk_tt.data.images import square
from ntk_tt.data.task import Source


def read_digits(rest: str, split: str) -> Source:
    """scikit-learn's 1797 handwritten digits of 8×8; offline."""
    if rest:
        raise ValueError(f"data: 'digits' takes no argument, got {rest!r}")
    if split != "train":
        raise ValueError(f"split: 'digits' has no split {split!r}; take 'train'")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    items = {str(name): list(pixels[digits.target == name]) for name in digits.target_names}
    return Source(items, lambda array, size: square(Image.fromarray(array), size))
