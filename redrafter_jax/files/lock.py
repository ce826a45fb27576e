"""One writer at a time: locks on files and folders, which the operating system releases when a process ends.

The lock of a file is beside it (`.NAME.lock`), the lock of a folder is in it (`.redrafter_jax.lock`). It names the
process that has it. It is removed at the end; a lock file of a killed process locks nothing. Two hosts see each other's
locks where their shared file system supports `flock` (NFS from version 4, Lustre mounted with `flock`), not in a
bucket.
"""

import contextlib
import errno
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

import filelock

from redrafter_jax.errors import BadInput

FOLDER_LOCK_NAME = ".redrafter_jax.lock"
NO_LOCK_ERRNOS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def file(path: pathlib.Path, what: str) -> Iterator[None]:
    """Locks a file, which need not exist, while this context is open.

    Args:
      what: the option that names the file, for errors.

    Raises:
      BadInput: another process has the lock, or its folder cannot be written.
    """
    real = pathlib.Path(os.path.realpath(path))  # a link shares the lock of its file
    if not real.parent.is_dir():
        raise BadInput(f"{what}: there is no folder {real.parent}")
    with _lock(real.with_name(f".{real.name}.lock"), f"{what}: {path}", "file"):
        yield


@contextlib.contextmanager
def folder(path: pathlib.Path, what: str) -> Iterator[None]:
    """Locks a folder while this context is open. Makes the folder where it does not exist; removes it at the end if it
    is empty and was made here.

    Raises:
      BadInput: another process has the lock, or the folder cannot be made or written.
    """
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{what}: the folder {path} cannot be made ({error.strerror})") from None
        with _lock(path / FOLDER_LOCK_NAME, f"{what}: {path}", "folder"):
            yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()


@contextlib.contextmanager
def _lock(place: pathlib.Path, name: str, kind: str) -> Iterator[None]:
    lock = filelock.FileLock(place, blocking=False, fallback_to_soft=False, on_acquired=_write_holder)
    try:
        lock.acquire()
    except filelock.Timeout:
        who = f"another process{_read_holder(place)}"
        raise BadInput(f"{name} is being written by {who}; wait for it or name another {kind}") from None
    except OSError as error:
        if error.errno not in NO_LOCK_ERRNOS:
            raise BadInput(f"{name} cannot be locked: {place} cannot be written ({error.strerror})") from None
        print(f"note: {name} has no lock, for its file system has none; let no other process write it", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()  # still locked: a process that has it open sees that it has no name, and starts over
        lock.release()


def _write_holder(opened: int) -> None:
    """Writes into a lock file which process has the lock."""
    os.ftruncate(opened, 0)
    os.pwrite(opened, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n", 0)


def _read_holder(place: pathlib.Path) -> str:
    try:
        found = json.loads(place.read_text())
        return f" (pid {found['pid']} on host {found['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # the other process has just acquired or released the lock
