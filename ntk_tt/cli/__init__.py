"""The command line: flags in, one library call, its result printed."""

from ntk_tt.cli.entry import main

__all__ = ["main"]
