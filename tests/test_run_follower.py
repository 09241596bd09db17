"""Following a run from within its own loop, and in the trainers people use."""

import math

import numpy as np
import pytest

from ntk_tt.times.callbacks import KerasCallback, LightningCallback, TransformersCallback
from ntk_tt.times.run_follower import RunFollower

STEPS = np.arange(0, 201, 4)
CURVE = 2.0 * np.exp(-STEPS / 50)
DOCUMENT = {
    "prediction": {"steps": STEPS.tolist(), "loss": CURVE.tolist(), "method": "curvature"},
    "cost": {"seconds_per_step": 0.5},
    "verdict": {"stability_margin": 3.0, "trust": "high"},
}


def follower(told, **options):
    clock = iter(np.arange(0, 1e6, 2.0))
    return RunFollower(
        DOCUMENT, target=0.2, say=told.append, clock=lambda: float(next(clock)), **options
    )


def test_it_tells_target_and_end():
    told = []
    follow = follower(told, every_seconds=0)
    for step in range(10, 61, 10):
        follow(step, 2.0 * math.exp(-step / 50))
    last = told[-1]
    # 0.2 is reached at 50 ln 10 = 115
    assert last.status.remaining_steps == pytest.approx(115 - 60, abs=3)
    assert (last.last_step, last.steps_left) == (200, 140)
    assert last.status.probability > 0.9
    assert "to the last step 140 steps" in str(last)
    assert "below 0.2 in" in str(last)
    # by the loop's own clock, which is asked twice for each loss: 4 s for 10 steps
    assert last.seconds_left == pytest.approx(140 * 0.4, rel=0.1)


def test_a_slower_run_is_seen():
    told = []
    follow = follower(told, every_seconds=0)
    for step in range(10, 101, 10):
        follow(step, 2.0 * math.exp(-step / 100))
    # 0.2 is reached at 230, after the last step
    assert told[-1].status.remaining_steps is None
    assert told[-1].status.probability <= 0.5
    assert told[0].status.probability > told[-1].status.probability


@pytest.mark.slow
def test_lines_are_not_too_many():
    told = []
    clock = iter(np.arange(0, 1000, 0.5))
    follow = RunFollower(
        DOCUMENT, say=told.append, every_seconds=10, clock=lambda: float(next(clock))
    )
    for step in range(1, 61):
        follow(step, 1.0)
    assert len(told) in (3, 4)  # of 30 s
    assert follow(61, None) is None


def test_without_a_prediction_the_curve_is_continued():
    told = []
    follow = RunFollower(target=0.2, num_steps=200, say=told.append, every_seconds=0)
    for step in range(6, 61, 6):
        follow(step, 2.0 * math.exp(-step / 50))
    assert told[-1].status.remaining_steps == pytest.approx(55, abs=15)
    assert told[-1].steps_left == 140
    assert not follow.reached
    follow(61, 0.1)
    assert follow.reached


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"every_seconds": -1}, "every_seconds"),
        ({"target": -1}, "target"),
        ({"prediction": {}}, "the document is no report"),
    ],
)
def test_what_is_wrong_is_said(options, says):
    with pytest.raises(ValueError, match=says):
        RunFollower(**options)


class Trainer:
    global_step, max_steps, estimated_stepping_batches = 0, 12, 12


@pytest.mark.parametrize("end", [12, None])
def test_callbacks_hand_on_what_they_are_told(end):
    told, state = [], Trainer()
    made = RunFollower(target=0.2, num_steps=end, say=told.append, every_seconds=0)
    lightning = LightningCallback(made)
    lightning.setup(state, None, "fit")
    lightning.on_train_start(state, None)
    lightning.on_anything_else(1, 2, three=3)
    for step in range(1, 4):
        state.global_step = step
        lightning.on_train_batch_end(state, None, {"loss": 1.0 / step}, None, step)
    assert [each.status.step for each in told] == [1, 2, 3]
    assert told[-1].steps_left == 9

    told.clear()
    made = RunFollower(target=0.2, num_steps=end, say=told.append, every_seconds=0)
    transformers = TransformersCallback(made)
    transformers.on_train_begin(None, state, None)
    transformers.on_log(None, state, None, logs={"eval_loss": 2.0})
    transformers.on_log(None, state, None, logs={"loss": 0.7, "epoch": 1.0}, model=None)
    assert [each.status.loss for each in told] == [0.7]
    assert told[-1].steps_left == 9

    told.clear()
    made = RunFollower(target=0.2, num_steps=end, say=told.append, every_seconds=0)
    keras = KerasCallback(made)
    keras.set_params({"steps": 4, "epochs": 3, "verbose": 0})
    keras.set_model(object())
    for epoch in range(2):
        for batch in range(4):
            keras.on_train_batch_end(batch, {"loss": 1.0})
        keras.on_epoch_end(epoch, {"loss": 1.0 - 0.3 * epoch})
    assert [(each.status.step, each.status.loss) for each in told] == [(4, 1.0), (8, 0.7)]
    assert told[-1].steps_left == 4
    with pytest.raises(AttributeError):
        _ = keras.nothing_like_it


def test_in_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="keras is not installed: pip install keras")
    told = []
    made = RunFollower(target=0.01, say=told.append, every_seconds=0)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    model.fit(x, x.sum(1), epochs=3, batch_size=8, verbose=0, callbacks=[KerasCallback(made)])
    assert [each.status.step for each in told] == [4, 8, 12]
    assert told[0].steps_left == 8


def test_in_lightning():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    lightning = pytest.importorskip(
        "pytorch_lightning", reason="lightning is not installed: pip install lightning"
    )

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            (x,) = batch
            return (self.layer(x)[:, 0] - x.sum(1)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    told = []
    made = RunFollower(target=0.01, say=told.append, every_seconds=0)
    data = torch.utils.data.TensorDataset(torch.randn(32, 4))
    trainer = lightning.Trainer(
        max_epochs=2,
        callbacks=[LightningCallback(made)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=8))
    assert [each.status.step for each in told] == list(range(1, 9))
    assert told[0].steps_left == 7


def test_in_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install transformers"
    )
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x=None, labels=None):
            return {"loss": (self.layer(x)[:, 0] - labels).square().mean()}

    rows = [{"x": row, "labels": row.sum()} for row in torch.randn(32, 4)]
    told = []
    made = RunFollower(target=0.01, say=told.append, every_seconds=0)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        logging_steps=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        Network(), arguments, train_dataset=rows, callbacks=[TransformersCallback(made)]
    )
    trainer.train()
    assert [each.status.step for each in told] == [2, 4, 6, 8]
    assert told[0].steps_left == 6


def test_a_run_whose_rate_was_changed_goes_on_with_another_prediction():
    told = []
    follow = follower(told, every_seconds=0)
    for step in range(10, 61, 10):
        follow(step, 2.0 * math.exp(-step / 50))
    before = told[-1].status.remaining_steps
    # a quarter of the rate from step 60 on
    slower = np.where(STEPS <= 60, STEPS, 60 + (STEPS - 60) / 4)
    loss = (2.0 * np.exp(-slower / 50)).tolist()
    follow.replan({**DOCUMENT, "prediction": {**DOCUMENT["prediction"], "loss": loss}})
    for step in range(70, 91, 10):
        follow(step, 2.0 * math.exp(-(60 + (step - 60) / 4) / 50))
    assert follow.num_steps == 200
    assert told[-1].status.step == 90
    assert before < 70
    assert told[-1].status.remaining_steps is None or told[-1].status.remaining_steps > 90
    follow.replan(DOCUMENT, num_steps=300)
    assert follow.status().steps_left == 210
