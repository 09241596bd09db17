"""Images of any kind and size to square RGB, as torchvision's `Resize` and `CenterCrop` do it; no
file is trusted.
"""

import functools
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ntk_tt.data.regular_files import require_regular_file
from ntk_tt.data.task import UnreadableImage
from ntk_tt.runtime.memory import format_bytes, host_bytes

# Formats that Pillow decodes in this process. Of the others it knows, some start programs
# (PostScript: Ghostscript), some open what they contain as any format, and some are no pictures.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
# nearly any bytes would pass for one: these go by their suffix
_WITHOUT_SIGNATURE = {
    ".tga": "TGA",
    ".pcx": "PCX",
}
IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".pfm",
        ".avif",
        ".avifs",
        ".jp2",
        ".j2k",
        ".j2c",
        ".jpc",
        ".jpf",
        ".jpx",
        ".qoi",
        *_WITHOUT_SIGNATURE,
    )
)

_MOST_BYTES = (
    2**30
    # of a file: a picture of `Image.MAX_IMAGE_PIXELS` pixels of 16-bit RGBA takes 0.7 GB
    # uncompressed
)
# pixels of a whole resized image, most of which may be cropped; larger ones are cropped first
_MOST_RESIZED = 2**24
# tags of TIFF
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES, _SAMPLE_FORMAT = 258, 262, 277, 284, 339
_DECODED_BYTES = (
    8  # of a pixel at most, as decoded and once more as RGB; Pillow keeps four bytes for each
)


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) with the short side at `size`: torchvision's rule, the long side rounded
    down.
    """
    return (
        (size, int(size * height / width))
        if width <= height
        else (int(size * width / height), size)
    )


def square(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resize the short side to `size` (bilinear, antialiased), crop the centre; RGB uint8.

    Raises:
        ValueError: pixels of 32 bits outside the range that can be told: floats in [0, 1], integers
            in 0 … 65535.
    """
    image = _eight_bits(image)
    if image.mode != "L":  # grey becomes RGB at the end: the same pixels for a third of the work
        image = image.convert("RGB")
    width, height = resized_size(*image.size, size)
    left, top = round((width - size) / 2), round((height - size) / 2)  # to even, like torchvision
    if width * height > max(_MOST_RESIZED, 4 * size**2):
        image = _resized_part(image, (width, height), (left, top), size)
    else:
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image.convert("RGB"))


def _resized_part(
    image: Image.Image, whole: tuple[int, int], corner: tuple[int, int], size: int
) -> Image.Image:
    """The square at `corner` of the image resized to `whole`, without the rest, which for a thin
    strip is gigabytes.

    The same pixels but for rounding, by one of 255: Pillow resizes the two directions one after the
    other, in the cheaper order.
    """
    window, box = [], []
    for length, resized, start in zip(image.size, whole, corner, strict=True):
        scale = length / resized
        low, high = start * scale, min((start + size) * scale, length)
        reach = math.ceil(max(scale, 1)) + 1  # of the filter
        first, last = max(0, math.floor(low) - reach), min(length, math.ceil(high) + reach)
        window.append((first, last))
        box.append((low - first, high - first))  # near zero: Pillow keeps them in single precision
    (left, right), (top, bottom) = window
    (x0, x1), (y0, y1) = box
    return image.crop((left, top, right, bottom)).resize(
        (size, size), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1)
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deeper greys as eight bits; Pillow itself would clip them at 255."""
    if image.mode == "F":
        return Image.fromarray(bytes_of_floats(np.asarray(image)))
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.dtype.itemsize > 2 and not 0 <= int(values.min()) <= int(values.max()) < 2**16:
        raise ValueError(
            f"pixels of 32 bits must lie in 0 … 65535, got {values.min()} … {values.max()}"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def bytes_of_floats(pixels: np.ndarray) -> np.ndarray:
    """Floating-point pixels in [0, 1] as uint8 in 0 … 255.

    Raises:
        ValueError: NaN, infinity, or pixels outside [0, 1].
    """
    low, high = float(pixels.min()), float(pixels.max())  # NaN and infinity come through
    if not math.isfinite(low + high):
        raise ValueError("the pixels hold NaN or infinity; repair or remove them")
    if low < 0 or high > 1:
        remedy = "divide by 255" if low >= 0 and 2 < high <= 255 else "undo the normalisation"
        raise ValueError(
            f"floating-point pixels must lie in [0, 1], got {low:g} … {high:g}; {remedy}, or give "
            "uint8 in 0 … 255"
        )
    return np.round(pixels * 255).astype(np.uint8)


def read_square(
    file: Path | bytes, size: int, name: str, *, bits_of_floats: bool = False
) -> UInt8[np.ndarray, "size size 3"]:
    """The image in a file or in encoded bytes.

    Of a moving picture or a file of several pages the first is taken. A baseline JPEG of more than
    `Image.MAX_IMAGE_PIXELS` pixels is decoded at a half to an eighth of its size; any other image
    as large is refused.

    Args:
        file: a path, or the encoded bytes.
        size: side of the square.
        name: what the error calls it.
        bits_of_floats: the four bytes of a pixel are those of a float32 in [0, 1].

    Raises:
        UnreadableImage: it cannot be decoded, in whole or in part, is no regular file, or is
            absurdly large.
    """
    try:
        with _opened(file, size) as image:
            if bits_of_floats:
                return square(Image.fromarray(bytes_of_floats(_floats(image))), size)
            return square(image, size)
    except UnidentifiedImageError as error:
        raise UnreadableImage(name, f"it is none of {', '.join(FORMATS)}") from error
    # decoders raise whatever they like: RuntimeError, SyntaxError, MemoryError, struct.error, …
    except Exception as error:
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def _floats(image: Image.Image) -> np.ndarray:
    if image.mode != "RGBA":
        raise ValueError(
            f"floating-point pixels of four bytes each were expected, got the mode {image.mode}"
        )
    return np.asarray(image).view(np.float32)[..., 0]


def _opened(file: Path | bytes, size: int) -> Image.Image:
    """Opened, not yet decoded, and known to be of a size that can be decoded."""
    suffix = ""
    if not isinstance(file, bytes):
        if (num_bytes := require_regular_file(file).st_size) > _MOST_BYTES:
            raise ValueError(
                f"the file has {format_bytes(num_bytes)}, more than {format_bytes(_MOST_BYTES)}"
            )
        suffix = file.suffix.lower()
    with warnings.catch_warnings():
        # what it warns of is refused below
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, formats=_formats(suffix)
        )
    try:
        _check_pixels(image, size)
    except Exception:
        image.close()
        raise
    return image


@functools.cache
def _formats(suffix: str) -> tuple[str, ...]:
    Image.init()  # an older Pillow lacks some
    return tuple(name for name in (*FORMATS, _WITHOUT_SIGNATURE.get(suffix)) if name in Image.OPEN)


def _check_pixels(image: Image.Image, size: int) -> None:
    most = Image.MAX_IMAGE_PIXELS or math.inf
    width, height = image.size
    # libjpeg keeps a progressive one whole all the same
    if width * height > most and not image.info.get("progressive"):
        image.draft(None, (2 * size, 2 * size))
    pixels = image.width * image.height
    if pixels > most:
        raise ValueError(
            f"Image size ({width} × {height} pixels) exceeds the limit of {most} pixels; shrink it"
        )
    tags = getattr(image, "tag_v2", {})  # of TIFF, which decodes tile by tile
    if tags:
        _check_samples(tags)
    if int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0)) > most:
        raise ValueError(f"its tiles exceed the limit of {most} pixels")
    if pixels > _MOST_RESIZED and pixels * _DECODED_BYTES > host_bytes():
        raise ValueError(
            f"decoding its {width} × {height} pixels takes "
            f"{format_bytes(pixels * _DECODED_BYTES)}, {format_bytes(host_bytes())} may be used; "
            "shrink it"
        )


def _check_samples(tags: Any) -> None:
    """Refuses what Pillow decodes to other pixels than those of the file."""
    bits = max(np.ravel(tags.get(_BITS, 1)))
    if bits <= 16 and 2 in np.ravel(tags.get(_SAMPLE_FORMAT, 1)):
        raise ValueError(
            f"its samples are integers of {bits} bits with a sign, whose white is not known; save "
            "it with 8 or 16 bits without a sign"
        )
    if bits > 8 and tags.get(_PHOTOMETRIC) == 0:
        raise ValueError(
            f"white is zero in its {bits} bits, and it would be read as its negative; save it with "
            "zero for black"
        )
    if bits > 8 and tags.get(_SAMPLES, 1) > 1 and tags.get(_PLANES) == 2:
        raise ValueError(
            f"its colours lie one behind the other in {bits} bits each; save it with the colours "
            "of a pixel together, or with 8 bits"
        )
