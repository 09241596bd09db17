"""Single images: exact pixels, thin strips, bombs, deep pixels, and decoders that fail in every
way.
"""

import io
import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from ntk_tt.data import UnreadableImage, load_task, task_from_arrays
from ntk_tt.data import images as module
from ntk_tt.data.images import FORMATS, read_square, resized_size, square


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def whole_then_cropped(image: Image.Image, size: int) -> np.ndarray:
    """torchvision's `Resize` and `CenterCrop`, in so many words."""
    width, height = resized_size(*image.size, size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


# pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (97, 8), (5, 64), (12, 12)])
def test_the_square_is_that_of_the_whole_resized_image(mode, shape):
    image = noise(*shape).convert(mode)
    for size in (5, 12, 33):
        np.testing.assert_array_equal(square(image, size), whole_then_cropped(image, size))


@pytest.mark.parametrize(
    "shape", [(700, 40), (40, 700), (900, 7), (7, 901), (300, 1), (1, 300), (64, 48)]
)
def test_cropping_before_resizing_gives_the_same_pixels(shape, monkeypatch):
    monkeypatch.setattr(module, "_MOST_RESIZED", 0)
    image = noise(*shape)
    for size in (4, 15, 24):
        if np.prod(resized_size(*shape, size)) > 4 * size**2:
            difference = np.abs(square(image, size).astype(int) - whole_then_cropped(image, size))
            assert difference.max() <= 1  # one of 255: Pillow may resize the other direction first


@pytest.mark.parametrize("shape", [(60000, 1), (1, 60000), (30001, 2), (2, 30001)])
def test_a_thin_strip_is_read_without_the_whole(shape, monkeypatch):
    """At 224 it would be 224 × 13,440,000 pixels."""
    made, resize = [], Image.Image.resize

    def count(image, size, *arguments, **more):
        made.append(size[0] * size[1])
        return resize(image, size, *arguments, **more)

    monkeypatch.setattr(Image.Image, "resize", count)
    image = noise(*shape)
    pixels = square(image, 224)
    assert pixels.shape == (224, 224, 3)
    assert max(made) <= 224**2
    middle = np.asarray(image)
    middle = (
        middle[:, 29990:30010]
        if shape[0] == 60000
        else middle[29990:30010]
        if shape[1] == 60000
        else middle
    )
    if 60000 in shape:
        np.testing.assert_allclose(
            pixels.astype(int), whole_then_cropped(Image.fromarray(middle), 224), atol=1
        )


def test_strips_come_as_arrays_too():
    images = np.stack([np.asarray(noise(50000, 1, seed)) for seed in range(2)])
    assert task_from_arrays(images, [0, 1], image_size=100).images.shape == (2, 100, 100, 3)


# depth


def encoded(image: Image.Image, kind: str, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def test_deep_greys_are_scaled_and_what_cannot_be_told_is_refused():
    floats = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(
        read_square(encoded(Image.fromarray(floats), "TIFF"), 4, "x")[..., 1],
        np.round(255 * floats),
    )
    deep = np.arange(0, 65536, 4096, dtype=np.int32).reshape(4, 4)
    for kind in (np.int32, np.uint16):
        np.testing.assert_array_equal(
            read_square(encoded(Image.fromarray(deep.astype(kind)), "TIFF"), 4, "x")[..., 2],
            deep // 256,
        )
    for values, message in (
        (255 * floats, r"must lie in \[0, 1\], got 0 … 255; divide by 255"),
        (floats - 0.5, r"got -0.5 … 0.5; undo the normalisation"),
        (np.where(floats > 0.5, np.nan, floats), "hold NaN or infinity"),
        (np.where(floats > 0.5, np.inf, floats), "hold NaN or infinity"),
        (deep * 2, r"32 bits must lie in 0 … 65535, got 0 … 122880"),
        (deep - 1, r"got -1 … 61439"),
    ):
        with pytest.raises(UnreadableImage, match=f"the image 'x' cannot be read .*{message}"):
            read_square(
                encoded(
                    Image.fromarray(
                        values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
                    ),
                    "TIFF",
                ),
                4,
                "x",
            )


def test_images_that_are_hardly_brighter_than_black_get_a_word(tmp_path):
    for name, most in (("a", 1), ("b", 1)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.eye(6, dtype=np.uint8) * most).save(tmp_path / name / "mask.png")
    task = load_task(f"folder:{tmp_path}", num_classes=None, image_size=6, per_class=None)
    assert task.notes == (
        "no pixel is brighter than 1 of 255; if these are masks, or numbers that do not use eight "
        "bits, scale them to 0 … 255",
    )
    Image.fromarray(np.eye(6, dtype=np.uint8) * 255).save(tmp_path / "b" / "mask.png")
    assert (
        load_task(f"folder:{tmp_path}", num_classes=None, image_size=6, per_class=None).notes == ()
    )


def test_the_first_picture_of_several_is_taken(tmp_path):
    pages = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        file = io.BytesIO()
        pages[0].save(
            file,
            kind,
            save_all=True,
            append_images=pages[1:],
            **({"lossless": True} if kind == "WEBP" else {}),
        )
        np.testing.assert_array_equal(
            read_square(file.getvalue(), 3, "x"), np.broadcast_to((255, 0, 0), (3, 3, 3))
        )


# programs, formats


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(owned) (w) file closefile showpage
%%EOF
"""


def test_postscript_by_another_name_starts_no_program(tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError(f"a program was started: {arguments}")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(os, "system", refuse)
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "0.png")
    for suffix in ("png", "jpg", "tga", "pcx"):
        (tmp_path / "b" / f"x.{suffix}").write_bytes(POSTSCRIPT)
        with pytest.raises(UnreadableImage, match=rf"x\.{suffix}' cannot be read"):
            load_task(f"folder:{tmp_path}", num_classes=2, per_class=None)
        (tmp_path / "b" / f"x.{suffix}").unlink()
    with pytest.raises(UnreadableImage, match="it is none of JPEG, PNG"):
        read_square(POSTSCRIPT, 4, "x")
    (tmp_path / "list.txt").write_text("b/x.png 1\na/0.png 0\n")
    (tmp_path / "b" / "x.png").write_bytes(POSTSCRIPT)
    with pytest.raises(UnreadableImage, match="it is none of"):
        load_task(f"list:{tmp_path}/list.txt", num_classes=2)


def test_formats_that_start_programs_or_open_others_are_not_read():
    """Those whose plug-ins call a program or `Image.open` without a list of formats."""
    assert not {
        "EPS",
        "PSD",
        "WMF",
        "FPX",
        "MIC",
        "IPTC",
        "ICO",
        "ICNS",
        "BUFR",
        "GRIB",
        "HDF5",
        "FITS",
        "GBR",
        "MPEG",
        "PDF",
    } & set(FORMATS)
    Image.init()
    assert set(FORMATS) - {"AVIF", "JPEG2000", "QOI"} <= set(Image.OPEN)


def test_the_format_goes_by_the_content(tmp_path):
    noise(9, 9).save(tmp_path / "x.bmp")
    for suffix in (".jpg", ".webp", ".tga"):
        named = (tmp_path / "x.bmp").rename(tmp_path / f"y{suffix}")
        np.testing.assert_array_equal(read_square(named, 9, "x"), np.asarray(noise(9, 9)))
        named.rename(tmp_path / "x.bmp")


# decoders that fail


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to decode"),
        SyntaxError("not a TIFF"),
        struct.error("unpack"),
        MemoryError(),
        EOFError(),
        ValueError("bad"),
        OverflowError("too large"),
        IndexError("index"),
        KeyError("tag"),
        TypeError("none"),
        ZeroDivisionError("0"),
        AttributeError("x"),
        RecursionError("deep"),
        AssertionError(),
        OSError("cut"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        Image.DecompressionBombError("large"),
        NotImplementedError("mode"),
    ],
)
def test_whatever_a_decoder_raises_names_the_image(error, tmp_path, monkeypatch):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/bad.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(8, 8).save(tmp_path / name)

    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fail)
    reason = str(error) or type(error).__name__
    with pytest.raises(UnreadableImage) as caught:
        load_task(f"folder:{tmp_path}", num_classes=2, per_class=None)
    assert (
        f"the image '{tmp_path}/b/bad.jpg' cannot be read ({reason}); remove or replace it"
        in str(caught.value)
    )
    task = load_task(f"folder:{tmp_path}", num_classes=2, per_class=None, on_corrupt="skip")
    assert task.per_class == (2, 2)
    assert task.notes == (f"1 unreadable image(s) left out, the first is '{tmp_path}/b/bad.jpg'",)


def test_an_interruption_is_none_of_these(tmp_path, monkeypatch):
    noise(8, 8).save(tmp_path / "x.png")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_square(tmp_path / "x.png", 4, "x")


def test_the_file_is_closed_where_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    noise(8, 8).save(tmp_path / "x.png")
    closed, close = [], ImageFile.ImageFile.close
    monkeypatch.setattr(
        ImageFile.ImageFile, "close", lambda image: (closed.append(True), close(image))
    )
    with pytest.raises(UnreadableImage):
        read_square(tmp_path / "x.png", 4, "x")
    assert closed


# size


def test_what_pillow_only_warns_of_is_refused(recwarn):
    bomb = encoded(Image.new("1", (11000, 11000)), "PNG")
    assert len(bomb) < 30_000
    with pytest.raises(
        UnreadableImage,
        match=r"Image size \(11000 × 11000 pixels\) exceeds the limit of 89478485 pixels; "
        r"shrink it",
    ):
        read_square(bomb, 32, "bomb")
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(monkeypatch):
    image = Image.fromarray(
        np.kron(
            np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8),
            np.ones((100, 100, 1), np.uint8),
        )
    )
    whole = read_square(encoded(image, "JPEG", quality=95), 8, "x").astype(int)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 1000)  # it has 160,000
    np.testing.assert_allclose(
        read_square(encoded(image, "JPEG", quality=95), 8, "x").astype(int), whole, atol=6
    )
    for refused in (
        encoded(image, "JPEG", progressive=True),
        encoded(image, "PNG"),
        encoded(image, "WEBP"),
    ):
        with pytest.raises(UnreadableImage, match="exceeds the limit of 150000 pixels"):
            read_square(refused, 8, "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # the user's own wish
    assert read_square(encoded(image, "PNG"), 8, "x").shape == (8, 8, 3)


# numbers of TIFF's tags
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSET, SAMPLES = *range(256, 260), 262, 273, 277
ROWS, LENGTH, PLANES, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSET, TILE_LENGTH = (
    278,
    279,
    284,
    *range(322, 326),
)
SAMPLE_FORMAT = 339


def tiff(data: bytes, tags: dict[int, int]) -> bytes:
    """A file with these tags, which Pillow would not write, and one strip or tile of data."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def tiled_tiff(side: int, tile_side: int) -> bytes:
    """A grey square in one deflated tile."""
    data = zlib.compress(bytes(tile_side**2))
    tags = {WIDTH: side, HEIGHT: side, BITS: 8, COMPRESSION: 8, PHOTOMETRIC: 1, SAMPLES: 1}
    tile = {TILE_WIDTH: tile_side, TILE_HEIGHT: tile_side, TILE_OFFSET: 8, TILE_LENGTH: len(data)}
    return tiff(data, tags | tile)


def strip_tiff(pixels: np.ndarray, **tags: int) -> bytes:
    """Grey pixels as they lie in memory, or what other tags make of them."""
    usual = {
        "WIDTH": pixels.shape[1],
        "HEIGHT": len(pixels),
        "BITS": 8 * pixels.itemsize,
        "COMPRESSION": 1,
        "PHOTOMETRIC": 1,
        "OFFSET": 8,
        "SAMPLES": 1,
        "ROWS": len(pixels),
        "LENGTH": pixels.nbytes,
        "PLANES": 1,
        "SAMPLE_FORMAT": 1,
    }
    return tiff(
        pixels.tobytes(), {globals()[name]: value for name, value in (usual | tags).items()}
    )


def test_greys_of_tiff_are_those_of_the_file_or_refused():
    grey = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)
    for file in (
        strip_tiff(grey),
        strip_tiff(255 - grey, PHOTOMETRIC=0),
        strip_tiff(grey.astype("<u2") * 257),
        strip_tiff(grey.astype("<u4") * 257),
    ):
        np.testing.assert_array_equal(read_square(file, 4, "x")[..., 0], grey)
    for file, message in (
        (strip_tiff(65535 - grey.astype("<u2") * 257, PHOTOMETRIC=0), "white is zero in its 16"),
        (strip_tiff(grey.astype("<i2") * 128, SAMPLE_FORMAT=2), "16 bits with a sign"),
        (strip_tiff(grey // 2, SAMPLE_FORMAT=2), "8 bits with a sign"),
    ):
        with pytest.raises(UnreadableImage, match=f"the image 'x' cannot be read .*{message}"):
            read_square(file, 4, "x")


def test_colours_of_sixteen_bits_that_lie_in_planes_are_refused():
    planes = np.full((12, 4), 7 * 257, "<u2")
    file = strip_tiff(planes, HEIGHT=4, ROWS=4, PHOTOMETRIC=2, SAMPLES=3, PLANES=2)
    with pytest.raises(UnreadableImage, match="colours lie one behind the other in 16 bits"):
        read_square(file, 4, "x")


def test_tiles_larger_than_any_picture_are_refused():
    assert read_square(tiled_tiff(64, 128), 8, "x").shape == (8, 8, 3)
    bomb = tiled_tiff(64, 9600)
    assert len(bomb) < 10**6
    with pytest.raises(UnreadableImage, match="its tiles exceed the limit of 89478485 pixels"):
        read_square(bomb, 8, "x")


def test_an_image_that_does_not_fit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(module, "host_bytes", lambda: 10**8)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    with pytest.raises(
        UnreadableImage,
        match=r"decoding its 5000 × 5000 pixels takes 191 MiB, 95.4 MiB may be used",
    ):
        read_square(encoded(Image.new("L", (5000, 5000)), "PNG"), 8, "x")


def test_a_file_larger_than_any_picture_is_refused_unread(tmp_path):
    with open(tmp_path / "x.ppm", "wb") as file:
        file.write(b"P6 # a remark that has no end")
        file.truncate(2**40)
    with pytest.raises(UnreadableImage, match=r"the file has .* more than 1 GiB"):
        read_square(tmp_path / "x.ppm", 8, "x")


def test_a_sample_that_does_not_fit_is_refused_before_an_image_is_read(monkeypatch):
    monkeypatch.setattr("ntk_tt.data.task.host_bytes", lambda: 10**9)
    with pytest.raises(
        ValueError,
        match=r"image-size: 20 images of 20000 × 20000 pixels need 44.7 GiB, 954 MiB may be used; "
        r"ask for smaller or fewer images",
    ):
        load_task("digits", num_classes=2, per_class=10, image_size=20000)


# what is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("pipe", "it is a pipe, not a file"),
        ("zero", "it is a device, not a file"),
        ("folder", "it is a folder, not a file"),
        ("round", "Too many levels of symbolic links"),
        ("none", "No such file or directory"),
    ):
        with pytest.raises(UnreadableImage, match=rf"cannot be read \(.*{reason}"):
            read_square(tmp_path / f"{name}.png", 4, name)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    noise(4, 4).save(tmp_path / "x.png")

    def refuse(*arguments, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UnreadableImage, match=r"the image 'x' cannot be read .*Permission denied"):
        read_square(tmp_path / "x.png", 4, "x")
