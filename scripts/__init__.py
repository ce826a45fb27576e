"""Scripts that call the commands; no part of the package."""
