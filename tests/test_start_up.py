"""What is slow to import is imported where it is used."""

import subprocess
import sys

SLOW = ("matplotlib", "scipy.optimize", "scipy.stats", "sklearn", "tyro")


def test_the_package_imports_nothing_slow_beside_its_libraries():
    program = "import sys, ntk_tt; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program, *SLOW], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
