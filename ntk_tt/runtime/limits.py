"""Numbers beyond which no answer would come, or none that fits anywhere: they are refused before
any work.
"""

MAX_IMAGE_SIZE = 4096  # an image of that is 200 MB to a network
MAX_CLASSES = MAX_PER_CLASS = 10**6  # images of a class
MAX_PROJECTIONS = 2**31 - 1
MAX_SEED = 2**31 - 1


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raises ValueError, with the flag's name and the limit, for a number outside of least …
    most.
    """
    if value < least:
        raise ValueError(f"{name}: must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name}: must be at most {most}, got {value}")
