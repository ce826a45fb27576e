"""What every command has in common: reading options, `--version`, exit codes, one sentence for a mistake of the user's.

code    meaning
0       done
1       done, but the result is not what it should be (texts differ, a reply ended in an error); or a defect, with its traceback
2 an option, a file or the machine's state has to be corrected first; one sentence says what
3       another process of the run was lost (`infer.distributed`)
130     interrupted (Ctrl-C); training has saved what it had
141     whoever read standard output has closed it
143     asked to end (SIGTERM); training has saved what it had
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from infer import help as helps
from redrafter_jax.errors import as_bad_input
from redrafter_jax.version import __version__

BAD_INPUT, INTERRUPTED, PIPE_CLOSED, TERMINATED = 2, 130, 141, 143
VERSION_TEXT = "--version prints the version and ends."
Options = TypeVar("Options")


def read_options(kind: type[Options], name: str, arguments: Sequence[str] | None, **settings: Any) -> Options:
    """The options that the command ``python -m name`` was given, in an object of this dataclass.

    Args:
      arguments: those behind the command's name; None: of this process.
      settings: `default` and `description`, as `tyro.cli` takes them.

    Raises:
      SystemExit: after `--version` or `--help`; code 2 where an option cannot be read.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if "--version" in given:
        print(f"redrafter_jax {__version__}")
        raise SystemExit(0)
    other_name = helps.named_elsewhere(kind, given)
    if other_name is not None:
        print(f"error: {other_name}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)
    text = helps.wrap(f"{(settings.get('description') or kind.__doc__).strip()}\n{VERSION_TEXT}")
    parsed = helps.grouped(kind, settings.get("default"))
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        found = tyro.cli(parsed, args=given, prog=f"python -m {name}", config=config, description=text)
    except SystemExit as end:
        if not end.code:  # the help was printed
            print(helps.examples(kind), end="")
        raise
    return helps.flatten(kind, found)


def moved(old: str, new: str) -> int:
    """Says where a command has gone; returns the exit code."""
    print(f"error: python -m {old} is now python -m {new}, with the same options", file=sys.stderr)
    return BAD_INPUT


def run_command(body: Callable[[], int | None]) -> int:
    """The exit code of ``body`` (None: 0). Errors that are not the user's are raised unchanged."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks about the machine
    try:
        code = body() or 0
        sys.stdout.flush()  # here a closed pipe still changes the exit code
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        found = as_bad_input(error)
        if found is None:
            raise
        print(f"error: {' '.join(str(found).split())}", file=sys.stderr)
        return BAD_INPUT
