"""What the first process of a group does for all of them. Not here: how processes find each other and wait (`processes.py`)."""

import json
from collections.abc import Callable

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput, as_bad_input


def in_first(act: Callable[[], object]) -> None:
    """Calls ``act`` in the first process, while the others wait; all call together.

    Raises:
      BadInput: what ``act`` raised, in every process, so that none waits in vain for one that has ended.
    """
    if processes.count() == 1:
        act()
        return
    refusal = ""
    if processes.is_first():
        try:
            act()
        except Exception as error:
            found = as_bad_input(error)
            if found is None:
                raise
            refusal = str(found)
    refusal = json.loads(processes.broadcast_text(json.dumps(refusal)))  # never empty on its way
    if refusal:
        raise BadInput(refusal)
