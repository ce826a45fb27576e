"""The version, in its one place: packaging reads it here, and so does ``--version`` of every command."""

__version__ = "0.1.0"
