"""What a command begins with: the classes and images that it takes where it is not told."""

import numpy as np
import pytest

from ntk_tt.data import load_task
from ntk_tt.prediction.setup import Setup, load


@pytest.fixture
def twelve_classes(tmp_path) -> str:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 20)
    file = tmp_path / "set.npz"
    np.savez(file, images=rng.integers(0, 256, (240, 8, 8, 3), np.uint8), labels=labels)
    return str(file)


def test_a_file_gives_all_its_classes_and_a_note_says_what_is_taken(twelve_classes):
    setup = Setup(model="resnet8", weights="random", data=twelve_classes, image_size=8)
    loaded = load(setup)
    assert loaded.task.num_classes == 12
    assert len(loaded.task.labels) == 240
    assert loaded.notes == (
        "fewer than 150 images in 12 of 12 classes: '0' has 20, '1' has 20, '2' has 20, '3' has "
        "20, '4' has 20 and 7 more",
    )
    more = load_task("digits", num_classes=3, per_class=20)
    given = {"model": "resnet8", "weights": "random", "data": "digits", "image_size": 16}
    assert load(Setup(**given, classes=3, per_class=4)).notes == ()  # that was asked for
    assert load(Setup(**given, classes=3)).notes == (
        f"3 classes, {more.num_there} images; predicting a run on 150 a class "
        "(--per-class all takes all)",
    )


def test_classes_are_all_those_of_digits_only_where_asked_for():
    assert Setup().num_classes == 5
    assert Setup(classes="all").num_classes is None
    assert load_task("digits", num_classes=Setup(classes="all").num_classes).num_classes == 10
    with pytest.raises(ValueError, match="classes: must be at least 2, got 1"):
        Setup(classes=1).check()
    Setup(classes="all").check()
