"""Callbacks that follow a run in the trainers people use; none of these packages is imported.

Each is given a `RunFollower` and hands it what its trainer says. What a trainer calls besides does
nothing.
"""

import math
from typing import Any

from ntk_tt.times.run_follower import RunFollower

__all__ = ["KerasCallback", "LightningCallback", "TransformersCallback"]


class _Hooks:
    """A callback of any trainer: every `on_…` that is not written out does nothing."""

    def __init__(self, follower: RunFollower):
        self.follower = follower

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"{type(self).__name__} has no {name!r}")


def _nothing(*_: Any, **__: Any) -> None:
    return None


class LightningCallback(_Hooks):
    """For `lightning.Trainer(callbacks=[LightningCallback(follower)])`.

    It takes the loss that `training_step` returns, or its `loss`, at the trainer's `global_step`.
    The run's last step is the trainer's own where none was given.
    """

    state_key = "ntk_tt.times.callbacks.LightningCallback"

    def setup(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
        """Lightning's."""

    def teardown(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
        """Lightning's."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a run that is resumed is followed from there."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Learns where the run ends."""
        _learn_end(self.follower, getattr(trainer, "estimated_stepping_batches", None))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follows a batch."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.follower(trainer.global_step, loss)


class TransformersCallback(_Hooks):
    """For `transformers.Trainer(callbacks=[TransformersCallback(follower)])`.

    It takes the `loss` that the trainer logs, every `logging_steps`. The run's last step is the
    trainer's `max_steps` where none was given.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Learns where the run ends."""
        _learn_end(self.follower, getattr(state, "max_steps", None))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Follows what is logged."""
        if logs and "loss" in logs:
            self.follower(state.global_step, logs["loss"])


class KerasCallback(_Hooks):
    """For `model.fit(callbacks=[KerasCallback(follower)])`.

    Keras says the mean loss since an epoch began, so the follower is told once an epoch, at its
    last step.
    """

    def __init__(self, follower: RunFollower):
        super().__init__(follower)
        self.params: dict[str, Any] = {}
        self.model: Any = None
        self._steps = 0

    def set_params(self, params: dict[str, Any]) -> None:
        """Learns where the run ends."""
        self.params = params
        steps, epochs = params.get("steps"), params.get("epochs")
        _learn_end(self.follower, steps * epochs if steps and epochs else None)

    def set_model(self, model: Any) -> None:
        """Keras's."""
        self.model = model

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts a step."""
        self._steps += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Follows an epoch."""
        self.follower(self._steps, (logs or {}).get("loss"))


def _learn_end(follower: RunFollower, steps: Any) -> None:
    if follower.num_steps is None and steps is not None and 0 < steps < math.inf:
        follower.num_steps = int(steps)
