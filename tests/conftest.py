"""Shapes are checked at run time in every test; where the real image sets and weights lie."""

import os
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook

install_import_hook("ntk_tt", "beartype.beartype")  # before anything imports ntk_tt

from ntk_tt.runtime.compilation import keep_compiled  # noqa: E402

os.environ["NTK_TT_TRACEBACK"] = "1"  # of what nobody foresaw, tests want all
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}; set {variable}")
    return folder


def pytest_configure(config):
    # most of the time of a test is compilation, and many compile the same
    keep_compiled(ROOT / ".pytest_cache" / "compiled")
    # of flax's types
    config.addinivalue_line(
        "filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
    )


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real image sets as `<name>/<split>/<class>/<image>`."""
    return _folder("NTK_TT_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """Published pre-trained weights as safetensors files."""
    return _folder("NTK_TT_WEIGHTS", SHARED / "weights")


@pytest.fixture
def unchecked():
    """Run-time type checks off: what a user's call with a wrong argument meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
