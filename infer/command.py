"""How every command ends: with an exit code, and one sentence where something is the user's to mend.

code    meaning
0       done
1       done, but the result is not what it should be (texts differ, a reply ended in an error); or a defect, with its traceback
2       an option, a file or the machine's state has to be mended first: one sentence says what
3       another process of the run was lost (`infer.distributed`)
130     interrupted (Ctrl-C); training has saved what it had
141     whoever read standard output has closed it
143     asked to end (SIGTERM); training has saved what it had
"""

import os
import sys
from collections.abc import Callable

from redrafter_jax.errors import as_bad_input

BAD_INPUT, INTERRUPTED, PIPE_CLOSED, TERMINATED = 2, 130, 141, 143


def run_command(body: Callable[[], int | None]) -> int:
    """The exit code of ``body`` (None: 0). Errors that are not the user's to mend are raised as they are."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks about the machine
    try:
        code = body() or 0
        sys.stdout.flush()  # while a closed pipe can still be told from success
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
