"""One warning on a JAX that is newer than those tested."""

import warnings

import jax
import pytest

from ntk_tt.versions import TESTED_JAX, warn_of_untested_jax


@pytest.mark.parametrize("installed", ["0.13.0", "0.13.0.dev20270101", "0.100", "1.0.0"])
def test_a_newer_jax_is_warned_of(installed):
    with pytest.warns(UserWarning, match=rf"tested with JAX 0\.8 to 0\.12, this is {installed}; .* pip install 'jax==0.12.\*'") as caught:
        warn_of_untested_jax(installed)
    assert len(caught) == 1


@pytest.mark.parametrize("installed", [jax.__version__, "0.8.0", "0.10.2", "0.12.0.1", "0.12.99", *TESTED_JAX])
def test_a_tested_one_is_not(installed):
    with warnings.catch_warnings(action="error"):
        warn_of_untested_jax(installed)


@pytest.mark.slow
def test_the_package_warns_once_where_it_is_imported():
    import subprocess
    import sys

    program = "import jax; jax.__version__ = '0.13.1'; import ntk_tt, ntk_tt.cli; import ntk_tt.store"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("this is 0.13.1") == 1
