"""A trace by JAX's profiler of a few early updates of a run."""

import jax

from train.run import step

PROFILED_UPDATES = (5, 8)  # a trace begins and ends after these updates; the first ones compile


class Profile:
    """A trace of updates PROFILED_UPDATES[0] + 1 to PROFILED_UPDATES[1] after the start; a context manager."""

    def __init__(self, folder: str | None):
        self.folder, self.is_on = folder, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_on:
            jax.profiler.stop_trace()

    def after(self, count: int, state: step.HeadState) -> None:
        """Starts or stops the trace after ``count`` updates of this process."""
        if self.folder is None or count not in PROFILED_UPDATES:
            return
        jax.block_until_ready(state)
        if self.is_on:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(self.folder)
        self.is_on = not self.is_on
