"""What every surrogate answers, whatever its head: all that the dynamics and the verdict ask."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from ntk_tt.kernels.operators import Indices
from ntk_tt.targets import LossName

if TYPE_CHECKING:
    from ntk_tt.surrogate.linear import LinearizedProblem


@runtime_checkable
class Problem(Protocol):
    """A training problem that stands for the network's; one of these prices every learning rate,
    momentum, batch size and schedule.

    A *state* says where training is, and an optimiser moves it as it would move weights. A *point*
    is what of a state is enough to look at the kernel there: the state itself, or only its logits
    where the kernel is the same everywhere.
    """

    @property
    def targets(self) -> Float[Array, "n c"]:
        """One-hot rows for classification."""
        ...

    @property
    def loss(self) -> LossName:
        """`ce` or `mse`."""
        ...

    @property
    def note(self) -> str:
        """For the reader, what had to give way to memory and what that means; empty where nothing
        had to.
        """
        ...

    @property
    def num_samples(self) -> int:
        """N."""
        ...

    @property
    def num_projections(self) -> int | None:
        """D' of the random projection behind the kernel; None where it is exact, or not known."""
        ...

    @property
    def rank(self) -> int:
        """The most eigenvalues of the kernel that are not zero, as the loss sees it."""
        ...

    @property
    def dtype(self) -> Any:
        """In which the dynamics run."""
        ...

    @property
    def streamed(self) -> bool:
        """Whether products are Python loops over blocks on disk, which `jit` cannot trace."""
        ...

    @property
    def follows_kernel(self) -> bool:
        """Whether the kernel changes as the problem is trained."""
        ...

    @property
    def takes_any_optimizer(self) -> bool:
        """Whether a state holds parameters of the network, so that any optimiser that treats each
        of them alone can move it; else only SGD can.
        """
        ...

    @property
    def has_one_sharpness(self) -> bool:
        """Whether the sharpness is the same at every point."""
        ...

    @property
    def numbers_a_pass(self) -> int:
        """Numbers that a look at all samples makes for each state, beside the logits' own."""
        ...

    def alike(self, *, is_sgd: bool, num_steps: int) -> "Problem":
        """The same problem in fewer parameters, for an optimiser that has one rule for all entries
        and norms over all of them at most.

        Args:
            is_sgd: whether that is SGD, clipped or not, which is the same in any basis.
            num_steps: full batches, of all settings together, over which it has to pay.
        """
        ...

    def zero(self) -> Any:
        """The state before training."""
        ...

    def logits(self, state: Any, indices: Indices | None = None) -> Float[Array, "b c"]:
        """f of all samples, or of some."""
        ...

    def metrics(self, logits: Float[Array, "n c"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss and error rate."""
        ...

    def gradient(self, state: Any, weight_decay: Any = 0.0, indices: Indices | None = None) -> Any:
        """∂L/∂state of the mean loss of all samples, or of a batch, and λ·(the weights)."""
        ...

    def point(self, state: Any) -> Any:
        """What `tangent` takes."""
        ...

    def tangent(self, point: Any, scale: Any = None) -> "LinearizedProblem":
        """The problem with the kernel frozen as it is at a point, and that point's logits at its
        start: what sharpness is measured of. `scale`, like a state, is what an optimiser multiplies
        each entry of a gradient by; None where it multiplies all alike.
        """
        ...

    def shifted(self, by: Float[Array, "n c"]) -> "Problem":
        """The same problem with this added to its logits, wherever training has led."""
        ...

    def of_samples(self, indices: Indices) -> "Problem":
        """The problem of some of the samples.

        Raises:
            ValueError: it does not lie in memory on one device.
        """
        ...

    def frozen(self, method: str) -> "LinearizedProblem":
        """This problem for a method that takes a frozen kernel.

        Raises:
            ValueError: its kernel is not frozen.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """For a report (docs/json.md): its space, and what is known of its directions."""
        ...
