"""Files that are there whole, or as they were before, whatever interrupts their writing.

What is new is written beside the file, under a hidden name that no other file has, and takes the file's name at the end.
Not here: whether the file may be replaced (`claims.py`), that one process writes at a time (`lock.py`).
"""

import contextlib
import pathlib
import secrets
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def replacing(path: pathlib.Path | epath.Path) -> Iterator[pathlib.Path | epath.Path]:
    """A new name beside ``path`` to write to. It takes the place of ``path`` when this closes, and is removed in an error.

    Args:
      path: a file, which need not be there; an `epath.Path` may be in a bucket. Of a link the link itself is replaced.
    """
    new = path.parent / f".redrafter_jax-{secrets.token_hex(8)}.part"
    try:
        yield new
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says what is wrong
            new.unlink(missing_ok=True)
        raise
