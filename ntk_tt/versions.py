"""Which versions of JAX this is tested with."""

import re
import warnings

TESTED_JAX = ("0.8", "0.12")  # the oldest and the newest


def warn_of_untested_jax(installed: str) -> None:
    """Warn where JAX is newer than any that was tested: what is read off its jaxprs is not documented, and changes."""
    if _release(installed) > _release(TESTED_JAX[1]):
        warnings.warn(f"ntk-tt is tested with JAX {TESTED_JAX[0]} to {TESTED_JAX[1]}, this is {installed}; should anything fail, "
                      f"take one of those: pip install 'jax=={TESTED_JAX[1]}.*'", stacklevel=3)


def _release(text: str) -> tuple[int, ...]:
    """(0, 12) of 0.12.0.1, 0.12.1.dev20260101, …"""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
