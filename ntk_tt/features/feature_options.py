"""How features are computed: the settings that a user chooses."""

from typing import Literal, get_args

JacobianPath = Literal["structured", "plain"]
Precision = Literal["float32", "bfloat16"]


def check_path(path: str) -> None:
    if path not in get_args(JacobianPath):
        raise ValueError(f"path: unknown {path!r}; give 'structured' or 'plain'")


ProjectionName = Literal["fold", "achlioptas", "gaussian"]
