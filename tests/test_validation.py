"""Samples that are not trained on, and images that change before each look: predicted and real."""

import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt.data import Task
from ntk_tt.data.augmentation import Augmentation
from ntk_tt.prediction.finetuning import Finetuning
from ntk_tt.prediction.held_out import hold_out, read_validation
from ntk_tt.prediction.passes import pass_over
from ntk_tt.report.text import report_text, sentence
from ntk_tt.times.levels import Level, levels_of, read_target

SETTING = ntk_tt.OptimizerConfig(0.3, momentum=0.5)
STEPS = 40


def clouds(num, seed):
    """Points around three centres, as images of one row, with some labels that are wrong."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    centres = np.random.default_rng(0).normal(size=(3, 8))
    images = (centres[labels] + rng.normal(size=(num, 8))).astype(np.float32)
    labels[rng.choice(num, num // 5, replace=False)] = 0
    return images.reshape(num, 2, 4, 1), labels


def network():
    weights = jnp.asarray(0.1 * np.random.default_rng(1).normal(size=(8, 3)), jnp.float32)
    return ntk_tt.from_function(
        lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": weights}
    )


TRAINED, OTHERS = clouds(24, 1), clouds(60, 2)


@pytest.fixture(scope="module")
def real():
    return ntk_tt.finetune(network(), *TRAINED, SETTING, STEPS, validation=OTHERS)


@pytest.fixture(scope="module")
def report():
    return ntk_tt.predict_training_time(network(), *TRAINED, SETTING, STEPS, validation=OTHERS)


def softmax_loss(weights, images, labels):
    logits = images.reshape(len(images), -1) @ np.asarray(weights, np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -logs[np.arange(len(labels)), labels].mean(), (logits.argmax(1) != labels).mean()


def test_real_training_records_what_it_does_not_train_on(real):
    plain = ntk_tt.finetune(network(), *TRAINED, SETTING, STEPS)
    np.testing.assert_array_equal(real.loss, plain.loss)  # and training goes on as before
    assert plain.validation_loss is None
    for row, weights in ((0, network().params["w"]), (-1, real.params["w"])):
        loss, error = softmax_loss(weights, *OTHERS)
        assert real.validation_loss[row] == pytest.approx(loss, rel=1e-5)
        assert real.validation_error[row] == pytest.approx(error, abs=1e-6)


def test_mini_batches_and_smoothing_leave_the_other_labels_as_they_are():
    batches = ntk_tt.OptimizerConfig(0.1, batch_size=6)
    run = ntk_tt.finetune(
        network(), *TRAINED, batches, 20, record_every=7, validation=OTHERS, label_smoothing=0.2
    )
    assert len(run.validation_loss) == len(run.steps) == 4
    loss, error = softmax_loss(run.params["w"], *OTHERS)
    assert run.validation_loss[-1] == pytest.approx(loss, rel=1e-5)
    assert run.validation_error[-1] == pytest.approx(error, abs=1e-6)


@pytest.mark.slow_but("head")
@pytest.mark.parametrize("method", ["auto", "head"])
def test_the_predicted_curve_is_the_real_one(real, report, method):
    """A network that is linear in its parameters trains as its surrogate does, to rounding."""
    if method != "auto":
        report = ntk_tt.predict_training_time(
            network(), *TRAINED, SETTING, STEPS, validation=OTHERS, method=method
        )
    for name in ("loss", "error", "validation_loss", "validation_error"):
        np.testing.assert_allclose(
            report.curve[name], getattr(real, name), rtol=2e-4, atol=2e-5, err_msg=name
        )
    # trained to its noise, it is best on others before the end
    best = int(np.argmin(real.validation_loss))
    assert 0 < best < STEPS
    assert report.best_step == best


def test_levels_of_validation(report, real):
    level = float(np.mean(real.validation_loss[:2]))
    steps = report.steps_until(val_loss=level)
    assert steps == int(np.argmax(real.validation_loss < level))
    assert report.seconds_until(val_loss=level) == pytest.approx(steps * report.seconds_per_step)
    low, high = report.interval(val_loss=level)
    assert low <= steps
    assert high is None or steps <= high
    with pytest.raises(ValueError, match="level: give one of loss"):
        report.steps_until(test_loss=1.0)
    found = levels_of(*[np.asarray([2.0, 0.1])] * 2, (), (np.asarray([2.0, 1.5]),) * 2)
    assert [each.value for each in found if each.of == "val-loss"] == [1.8, 1.0]


@pytest.mark.slow
def test_it_is_said(report, real):
    text = sentence(report.document)
    best = report.document["prediction"]["validation"]["best"]
    assert f"Validation loss is least, {best['loss']:.3g}, after about {best['step']} steps" in text
    assert best["low"] <= best["step"]
    whole = " ".join(report_text(report.with_truth(real).document, width=100).split())
    assert f"least at step {best['step']}" in whole
    assert "validation loss" in whole
    document = report.with_truth(real).document
    assert document["truth"]["validation"]["best"]["step"] == best["step"]
    assert document["task"]["num_validation"] == 60
    without = ntk_tt.predict_training_time(network(), *TRAINED, SETTING, STEPS, method="head")
    assert without.best_step is None
    assert "alidation" not in str(without)
    with pytest.raises(ValueError, match="target: val-loss is of samples that are not trained on"):
        without.steps_until(val_loss=1.0)


@pytest.mark.parametrize("method", ["replay", "one-shot"])
def test_other_methods_say_so(method):
    with pytest.raises(ValueError, match=f"validation: '{method}' does not follow"):
        ntk_tt.prepare(network(), *TRAINED, validation=OTHERS, method=method)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ((OTHERS[0], OTHERS[1][:5]), "there are 5 labels for 60 inputs"),
        ((OTHERS[0][:, :1], OTHERS[1]), "preprocess both alike"),
    ],
)
def test_wrong_validation(validation, message):
    with pytest.raises(ValueError, match=f"validation: .*{message}"):
        ntk_tt.prepare(network(), *TRAINED, validation=validation)


@pytest.mark.parametrize(("text", "value"), [("0.2", 0.2), ("20%", 0.2), ("test", "test")])
def test_a_share_or_a_split(text, value):
    assert read_validation(text) == value


@pytest.mark.parametrize("text", ["0", "1", "-0.1", "nan", "120%"])
def test_no_share(text):
    with pytest.raises(ValueError, match="validation: a share lies between 0 and 1"):
        read_validation(text)


def test_val_targets_are_read():
    assert read_target("val-loss=0.5") == Level("val-loss", 0.5, True)
    assert read_target("val_error=5%") == Level("val-error", 0.05, True)
    assert Level("val-error", 0.05).words == "validation error 5 %"
    with pytest.raises(ValueError, match="target: an error is a share"):
        read_target("val-error=5")


def task_of(labels):
    images = np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    return Task(images, np.asarray(labels, np.int32), ("a", "b"), "arrays", 0)


def test_a_share_is_held_out_of_each_class():
    task = task_of([0] * 10 + [1] * 6)
    trained, others = hold_out(task, 0.25, 3, lambda *_: pytest.fail("there is no other split"))
    assert trained.per_class == (8, 4)
    assert others.per_class == (2, 2)
    both = np.concatenate([trained.images, others.images]).reshape(16, -1)
    assert len(np.unique(both, axis=0)) == 16
    with pytest.raises(ValueError, match="validation: class 'b' has 1 of them"):
        hold_out(task_of([0, 0, 1]), 0.5, 0, lambda *_: None)


def test_another_split_has_the_same_classes(tmp_path):
    from PIL import Image

    for split, names in (("train", "abc"), ("test", "cab"), ("val", "ab")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((4, 4, 3), 40 * (ord(name) - 96) + number, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    source = f"folder:{tmp_path}"
    task = ntk_tt.load_task(source, num_classes=2, per_class=3, image_size=4, seed=1)
    of = ntk_tt.load_task(
        source, split="test", classes=task.class_names, per_class=2, image_size=4, seed=1
    )
    assert of.class_names == task.class_names
    assert of.per_class == (2, 2)
    assert {
        (label, image[0, 0, 0] // 40) for label, image in zip(of.labels, of.images, strict=True)
    } == {
        (label, image[0, 0, 0] // 40) for label, image in zip(task.labels, task.images, strict=True)
    }
    with pytest.raises(ValueError, match=r"classes: .*split 'val', has no 'c'"):
        ntk_tt.load_task(source, split="val", classes=("a", "c"), per_class=1, image_size=4)


# Augmentation

IMAGES = np.random.default_rng(3).normal(size=(5, 16, 16, 2)).astype(np.float32)


def test_crops_are_parts_of_the_padded_image_and_flips_are_flips():
    views = Augmentation(draws=8).views(IMAGES, 0).reshape(5, 8, 16, 16, 2)
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="symmetric")
    seen = set()
    for image, own in zip(padded, views, strict=True):
        for view in own:
            found = [
                (down, right, flipped)
                for down in range(5)
                for right in range(5)
                for flipped in (False, True)
                if np.array_equal(
                    image[down : down + 16, right : right + 16][:, :: -1 if flipped else 1], view
                )
            ]
            assert len(found) == 1
            seen |= set(found)
    assert len(seen) > 20
    assert {each[2] for each in seen} == {False, True}


@pytest.mark.slow
def test_a_draw_depends_on_sample_draw_and_seed_alone():
    augment = Augmentation()
    both = np.asarray(augment.of(IMAGES, np.arange(5), 3, 7))
    np.testing.assert_array_equal(augment.of(IMAGES[2:4], np.arange(2, 4), 3, 7), both[2:4])
    for draw, seed in ((4, 7), (3, 8)):
        assert not np.array_equal(augment.of(IMAGES, np.arange(5), draw, seed), both)
    flips = Augmentation(crop=False).views(IMAGES, 1)
    assert all(
        np.array_equal(view, image) or np.array_equal(view, image[:, ::-1])
        for view, image in zip(flips, np.repeat(IMAGES, 2, 0), strict=True)
    )


@pytest.mark.parametrize("text", ["crop,flip", "crop", "flip"])
def test_augmentation_is_read(text):
    assert Augmentation.read(text).words == text


@pytest.mark.parametrize("text", ["", "crop,rotate", "none"])
def test_no_augmentation(text):
    with pytest.raises(ValueError, match="augment: give crop, flip or crop,flip"):
        Augmentation.read(text)


def test_augmentation_is_of_images():
    with pytest.raises(ValueError, match="augment: crops and flips are of images"):
        ntk_tt.finetune(network(), TRAINED[0][:, 0], TRAINED[1], SETTING, 2, augment=Augmentation())


@pytest.mark.slow
def test_real_training_draws_anew_in_each_step():
    """Its first step is that of gradients on the first draw, its record on one of its own."""
    augment = Augmentation()
    one = ntk_tt.finetune(network(), *TRAINED, SETTING, 1, augment=augment, seed=4)
    drawn = np.asarray(augment.of(TRAINED[0], np.arange(24), 0, 4))
    same = ntk_tt.finetune(network(), drawn, TRAINED[1], SETTING, 1)
    np.testing.assert_allclose(one.params["w"], same.params["w"], rtol=1e-5, atol=1e-7)
    assert one.loss[0] == pytest.approx(same.loss[0], rel=1e-5)
    # with a rate of nothing only the draw changes
    still = ntk_tt.OptimizerConfig(1e-12)
    run = ntk_tt.finetune(network(), *TRAINED, still, 5, augment=augment)
    assert len(set(run.loss.tolist())) == 6


@pytest.mark.slow
def test_a_prediction_is_of_a_few_draws():
    augment = Augmentation(draws=3)
    found = pass_over(Finetuning(network(), *TRAINED, augment=augment, validation=OTHERS), "head")
    assert found.problem.num_samples == 72
    assert found.held_out.num_samples == 60
    views = augment.views(TRAINED[0], 0)
    plain = ntk_tt.finetune(network(), views, np.repeat(TRAINED[1], 3), SETTING, STEPS)
    report = ntk_tt.predict_training_time(
        network(), *TRAINED, SETTING, STEPS, augment=augment, method="head"
    )
    np.testing.assert_allclose(report.curve["loss"], plain.loss, rtol=2e-4, atol=2e-5)
    assert report.document["task"]["augment"] == "crop,flip"
    assert report.document["task"]["num_samples"] == 24
    # which is nearer to training that draws anew than the images as they are
    real = ntk_tt.finetune(network(), *TRAINED, SETTING, STEPS, augment=augment)
    without = ntk_tt.predict_training_time(network(), *TRAINED, SETTING, STEPS, method="head")
    off, before = (
        np.abs(np.log(each.curve["loss"] / real.loss))[10:].mean() for each in (report, without)
    )
    assert off < 0.5 * before
