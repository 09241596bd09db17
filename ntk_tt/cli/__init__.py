"""The command line: flags in, one library call, its result printed."""
