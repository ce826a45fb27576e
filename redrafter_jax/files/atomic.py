"""Files that are replaced in one step: complete, or as they were before, whatever interrupts the writing.

The new content is written beside the file, under a hidden unique name, and renamed at the end. Not here: whether the
file may be replaced (`claims.py`), that one process writes at a time (`lock.py`).
"""

import contextlib
import pathlib
import secrets
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def replacing(path: pathlib.Path | epath.Path) -> Iterator[pathlib.Path | epath.Path]:
    """Yields a new path beside ``path`` to write to. It replaces ``path`` at the end, and is removed on an error.

    Args:
      path: a file, which need not exist; an `epath.Path` may be in a bucket. A link is replaced itself, not its file.
    """
    new = path.parent / f".redrafter_jax-{secrets.token_hex(8)}.part"
    try:
        yield new
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says what is wrong
            new.unlink(missing_ok=True)
        raise
