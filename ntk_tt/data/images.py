"""Images of any kind and size to square RGB, as torchvision's `Resize` and `CenterCrop` do it."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ntk_tt.data.task import UnreadableImage


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) with the short side at `size`: torchvision's rule, the long side rounded down."""
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def square(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resize the short side to `size` (bilinear, antialiased), crop the centre; RGB uint8."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    width, height = resized_size(*image.size, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)  # to even, like torchvision
    return np.asarray(image.crop((left, top, left + size, top + size)))


def read_square(file: object, size: int, name: str) -> UInt8[np.ndarray, "size size 3"]:
    """The image in a file (a path) or in encoded bytes.

    Raises:
        UnreadableImage: it cannot be decoded, in whole or in part, or is absurdly large.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:  # pyright: ignore[reportArgumentType]
            return square(image, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(name, error) from error
