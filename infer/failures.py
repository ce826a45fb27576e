"""Replies that ended early because the target's logits were not finite: one sentence for all commands, and a check that
refuses to measure such replies."""

from collections.abc import Sequence

from redrafter_jax.decode.reply import Reply
from redrafter_jax.errors import BadInput


def count(replies: Sequence[Reply]) -> int:
    """How many of them ended in an error."""
    return sum(reply.finish_reason == "error" for reply in replies)


def sentence(failed: int, of: int, to_check: str = "the weights of --target, and --dtype") -> str:
    """The sentence about the failed replies; ``to_check``: what may be the cause."""
    return f"{failed} of {of} replies ended early, for the target's logits were not finite; check {to_check}"


def check(replies: Sequence[Reply]) -> None:
    """Raises BadInput where some ended in an error: their speed, tokens per step and text mean nothing."""
    failed = count(replies)
    if failed:
        raise BadInput(sentence(failed, len(replies), "the target's weights"))
