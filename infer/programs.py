"""The folder where compiled programs are kept from one start to the next."""

import os
import pathlib
import re
import time

import jax

from redrafter_jax.errors import BadInput

DEFAULT_CACHE = pathlib.Path("~/.cache/redrafter_jax")
MAX_CACHE_BYTES = 4 << 30  # of programs; the least recently used ones are removed first
CACHE_FILE_PATTERN = re.compile(r".*-(cache|atime)|\.lockfile|xla_gpu_.*|fingerprints\.json.*")


def use_cache(folder: pathlib.Path | None) -> None:
    """Turns on JAX's persistent compilation cache, for programs of every size, up to MAX_CACHE_BYTES in all.

    Raises:
      BadInput: ``folder`` is given and cannot hold programs, or holds something else.
    """
    from jax.experimental.compilation_cache import compilation_cache

    chosen = (folder or DEFAULT_CACHE).expanduser()
    if folder is not None:
        check_cache(chosen)
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        if not os.access(chosen, os.W_OK):
            raise PermissionError(0, "not writable")
        _complete(chosen)
    except OSError as error:
        if folder is None:  # the default folder is optional: decoding works without it
            return
        raise BadInput(f"--cache-dir: {folder} cannot hold compiled programs ({error.strerror})") from None
    if jax.config.jax_compilation_cache_dir != str(chosen):
        compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _complete(folder: pathlib.Path) -> None:
    """Adds the missing times of last use of programs. A time is missing in a folder that was filled without a size limit,
    or where a process was killed between JAX's two writes. JAX reads all of these times before it writes a program, and
    writes none where one is missing."""
    now = time.time_ns().to_bytes(8, "little")
    for program in folder.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("-cache") + "-atime")
        if not used.exists():
            used.write_bytes(now)


def check_cache(folder: pathlib.Path) -> None:
    """Raises BadInput where a folder holds a file that is neither a compiled program, by the names that JAX and XLA give,
    nor the cache of `redrafter_jax.files.fingerprint`."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if not CACHE_FILE_PATTERN.fullmatch(name)]
    if foreign:
        raise BadInput(f"--cache-dir: {folder} holds files ({foreign[0]}) that are no programs; name another folder")
