"""One module for each command: `NAME`, `SUMMARY`, `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`.

What a command needs is imported inside `run`, so that the others and `--help` do not wait for it.
"""
