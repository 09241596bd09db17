"""Damage at random in every kind of input: a right answer or an error that names the file, in
bounded memory and time.
"""

import io
import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from ntk_tt.data import UnreadableImage, load_task
from ntk_tt.data.images import read_square

NUMBER = 200  # of mutations of each kind of input
KINDS = {
    "PNG": {},
    "JPEG": {},
    "progressive JPEG": {"progressive": True},
    "TIFF": {},
    "deflated TIFF": {"compression": "tiff_adobe_deflate"},
    "LZW TIFF": {"compression": "tiff_lzw"},
    "GIF": {},
    "WEBP": {},
    "lossless WEBP": {"lossless": True},
    "BMP": {},
    "PPM": {},
    "JPEG2000": {},
    "AVIF": {},
    "TGA": {},
    "PCX": {},
}


def encoded(kind: str) -> bytes:
    name = kind.split()[-1]
    if name in ("WEBP", "AVIF") and not features.check(name.lower()):
        pytest.skip(f"this Pillow has no {name}")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)).save(
        file, name, **KINDS[kind]
    )
    return file.getvalue()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, extreme numbers, holes, cuts, repeats and shuffles, most of them in the first
    200 bytes, where headers are.
    """
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, max(1, min(len(data), 200 if rng.random() < 0.7 else len(data)))))
        length = int(rng.integers(1, 17))
        match int(rng.integers(0, 7)):
            case 0:
                data[at : at + 1] = (
                    bytes([data[at] ^ (1 << int(rng.integers(0, 8)))]) if at < len(data) else b""
                )
            case 1:
                data[at : at + length] = rng.bytes(length)
            case 2:
                data[at : at + 4] = [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80", bytes(4)][
                    int(rng.integers(0, 4))
                ]
            case 3:
                data[at : at + 2 * length] = bytes(2 * length)
            case 4:
                del data[max(at, 1) :]
            case 5:
                data[at:at] = data[at : at + length] * 3
            case 6:
                other = int(rng.integers(0, max(1, len(data))))
                data[at : at + length], data[other : other + length] = (
                    data[other : other + length],
                    data[at : at + length],
                )
    return bytes(data)


def outcome(read, name: str) -> str:
    """`read` gives an answer, or an error that names the file and leaves it open to the caller what
    to do.
    """
    try:
        read()
    except (ValueError, OSError) as error:
        assert name in str(error), error  # noqa: PT017
        return "refused"
    return "read"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_images_are_read_or_named(kind, tmp_path):
    content, rng, path = (
        encoded(kind),
        np.random.default_rng(sum(map(ord, kind))),
        tmp_path / f"it.{kind.split()[-1].lower()}",
    )
    outcomes = []
    for _ in range(NUMBER):
        path.write_bytes(mutated(content, rng))
        try:
            pixels = read_square(path, 8, str(path))
            assert pixels.shape == (8, 8, 3)
            assert pixels.dtype == np.uint8
            outcomes.append("read")
        except UnreadableImage as error:
            assert str(path) in str(error)  # noqa: PT017
            outcomes.append("refused")
    assert outcomes.count("refused") >= NUMBER // 20  # the mutations do harm


def archive(compressed: bool) -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    (np.savez_compressed if compressed else np.savez)(
        file,
        images=rng.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8),
        labels=np.arange(6) % 2,
        class_names=np.asarray([b"a", b"b"]),
    )
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_mutated_arrays_are_read_or_named(compressed, tmp_path):
    content, rng, path = archive(compressed), np.random.default_rng(1), tmp_path / "it.npz"
    path.write_bytes(content)
    expected = load_task(f"arrays:{path}", num_classes=None).images
    outcomes = []
    for _ in range(NUMBER):
        path.write_bytes(
            mutated(content, rng)
            if rng.random() < 0.5
            else content[:-200] + mutated(content[-200:], rng)
        )

        def read():
            # checksums: right or refused
            np.testing.assert_array_equal(
                load_task(f"arrays:{path}", num_classes=None).images, expected
            )

        outcomes.append(outcome(read, "it.npz"))
    assert outcomes.count("refused") >= NUMBER // 4


def test_mutated_lists_are_read_or_named(tmp_path):
    names = [f"{kind}/shot {number}.png" for kind in ("a", "b c") for number in range(3)]
    for level, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 100 + level).save(tmp_path / name)
    rng, path = np.random.default_rng(2), tmp_path / "it.txt"
    outcomes = []
    for _ in range(NUMBER):
        path.write_bytes(
            mutated(
                "\n".join(
                    names if rng.random() < 0.5 else [f'"{name}",{name[0]}' for name in names]
                ).encode(),
                rng,
            )
        )

        def read():
            task = load_task(f"list:{path}", num_classes=None, image_size=4)
            assert set(task.images[:, 0, 0, 0].tolist()) <= set(range(100, 106))

        outcomes.append(outcome(read, "it.txt"))
    assert min(outcomes.count("refused"), outcomes.count("read")) >= NUMBER // 50


def test_mutated_trees_of_folders_are_read_or_named(tmp_path):
    """A folder of damaged images: with `skip` the sound ones, each in its class, and a word."""
    content, rng = encoded("PNG"), np.random.default_rng(3)
    sound = {"a": 4, "b": 5}
    for kind, number in sound.items():
        (tmp_path / kind).mkdir()
        for index in range(number):
            Image.new("L", (4, 4), 200).save(tmp_path / kind / f"sound {index}.png")
        for index in range(40):
            (tmp_path / kind / f"{index}.png").write_bytes(b"\0" + mutated(content, rng))
    with pytest.raises(ValueError, match="cannot be read"):
        load_task(f"folder:{tmp_path}", num_classes=2, per_class=None)
    task = load_task(
        f"folder:{tmp_path}", num_classes=2, per_class=None, on_corrupt="skip", image_size=4
    )
    assert task.per_class == tuple(sound.values())
    assert (task.images == 200).all()
    assert task.notes[-1].startswith("80 unreadable image(s) left out, the first is ")


# memory and time


def _in_bounds(folder: str) -> None:
    """In a process of its own with 1 GB more than it has: every kind mutated, bombs, and strips;
    prints what was had.
    """
    warnings.simplefilter("ignore")
    with open("/proc/self/status") as status:
        size = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + 10**9, size + 10**9))
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    counts = {"read": 0, "refused": 0}
    bombs = [
        ("bomb.png", Image.new("1", (13000, 13000))),
        ("strip.png", Image.new("L", (1, 60000))),
        ("strip.tif", Image.new("L", (60000, 1))),
        ("large.png", Image.new("1", (9000, 9000))),
    ]
    for name, image in bombs:
        image.save(Path(folder) / name)
    after_bombs = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    paths = [Path(folder) / name for name, _ in bombs]
    for kind in KINDS:
        if kind.split()[-1] in ("WEBP", "AVIF") and not features.check(kind.split()[-1].lower()):
            continue
        content, rng = encoded(kind), np.random.default_rng(9)
        for index in range(1000):
            paths.append(Path(folder) / f"{kind}-{index}.{kind.split()[-1].lower()}")
            paths[-1].write_bytes(mutated(content, rng))
    for path in paths:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        try:
            read_square(path, 224, str(path))
            counts["read"] += 1
        except UnreadableImage:
            counts["refused"] += 1
        seconds = max(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_utime - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {**counts, "seconds": seconds, "megabytes": (peak - min(before, after_bombs)) / 1024}
        )
    )


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_and_time_are_bounded_for_thousands_of_mutations(tmp_path):
    """15,000 mutated images and four bombs, read at 224 pixels."""
    program = f"from tests.test_data_mutations import _in_bounds; _in_bounds({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["read"] + found["refused"] == 1000 * len(KINDS) + 4
    assert found["megabytes"] < 800
    assert found["seconds"] < 20  # of one image, at worst
