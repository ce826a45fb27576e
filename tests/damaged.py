"""Files as a disk or a person damages them, and disks that are full."""

import errno
import os
import pathlib

import jax.numpy as jnp
from safetensors import SafetensorError

NO_ROOM = "there is no space left on the disk; make room and start the same command again"
DEEP = '{"a": ' + "[" * 100_000
HEAD = {"a": jnp.arange(4096, dtype=jnp.float32).reshape(64, 64) / 7, "b": jnp.ones(7, jnp.bfloat16)}


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def empty_all(folder: pathlib.Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            os.truncate(file, 0)


def flip(path, at: float = 0.5) -> None:
    """Flips one bit of a file, in place."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_tensorstore(*_, **__):
    raise ValueError('RESOURCE_EXHAUSTED: Failed writing: "x": Failed to write 4225 bytes: No space left on device')


def full_in_safetensors(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
