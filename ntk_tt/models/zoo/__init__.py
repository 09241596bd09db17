"""The networks that can be loaded by name, one family a file."""
