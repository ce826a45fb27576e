"""JAX's persistent compilation cache, turned off for a while."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def without_persistent_cache() -> Iterator[None]:
    """Compiles for whoever keeps the program in another way, or for a device that is not here. Threads may enter it within the
    context of the one that made them."""
    folder = jax.config.jax_compilation_cache_dir
    if folder is None:
        yield
        return
    _keep_programs_in(None)
    try:
        yield
    finally:
        _keep_programs_in(folder)


def _keep_programs_in(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # else what was in use before stays in use
