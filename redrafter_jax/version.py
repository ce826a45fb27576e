"""The version of the package, in one place: pyproject.toml and the commands' `--version` read it."""

__version__ = "0.1.0"
