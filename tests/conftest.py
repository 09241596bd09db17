"""Shapes are checked at run time in every test; where the real image sets and weights lie."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

import jaxlib.version
import jaxtyping
import pytest
from jaxtyping import install_import_hook

install_import_hook("ntk_tt", "beartype.beartype")  # before anything imports ntk_tt

from ntk_tt.runtime.compilation import keep_compiled  # noqa: E402

os.environ["NTK_TT_TRACEBACK"] = "1"  # of what nobody foresaw, tests want all
ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set")
    if not Path(folder).is_dir():
        pytest.skip(f"{variable}: there is no folder {folder}")
    return Path(folder)


def pytest_addoption(parser):
    parser.addoption(
        "--fast-compilation",
        action="store_true",
        help="compile programs that run slower: a third of the time for tests, which run each once",
    )


def _fast_compilation() -> str:
    """Flags for XLA: LLVM optimises nothing, and kernels are made without MLIR, where XLA still
    lets one choose; an unknown flag ends the process.
    """
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if jaxlib.version.__version_info__ < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


def pytest_configure(config):
    if config.getoption("--fast-compilation"):  # for programs that tests start, too
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_fast_compilation()}"
    # most of the time of a test is compilation, and many compile the same
    keep_compiled(ROOT / ".pytest_cache" / "compiled")
    # of flax's types
    config.addinivalue_line(
        "filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config, items):
    """What `slow_but` and `nightly_but` leave of a parametrised test is slow, or nightly, and what
    is nightly is slow too; names must be names of cases.
    """
    named: dict[str, set[str]] = {}
    for item in items:
        for kind in ("slow", "nightly"):
            for marker in item.iter_markers(f"{kind}_but"):
                left = named.setdefault(f"{kind}_but of {item.originalname}", set(marker.args))
                found = {name for name in marker.args if fnmatchcase(item.callspec.id, name)}
                left -= found
                if not found:
                    item.add_marker(kind)
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")
    unknown = {test: names for test, names in named.items() if names}
    if unknown and not any("::" in each for each in config.args):
        raise pytest.UsageError(f"no such cases: {unknown}")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real image sets as `<name>/<split>/<class>/<image>`."""
    return _folder("NTK_TT_DATA")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """Published pre-trained weights as safetensors files."""
    return _folder("NTK_TT_WEIGHTS")


@pytest.fixture
def unchecked():
    """Run-time type checks off: what a user's call with a wrong argument meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
