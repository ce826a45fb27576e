"""A completion as HTML. Not here: how a draft is tinted (`redrafter_jax/decode/markup.py`), a reply that grows (`stream.py`)."""

from collections.abc import Iterator, Sequence

from redrafter_jax.decode.markup import mark_drafts
from redrafter_jax.decode.reply import Reply


def completion(text: str | None, reply: Reply, pieces: Sequence[str], before: str = "") -> str:
    """The text with accepted drafts tinted, or the ids where there is no text.

    Args:
      text: the reply's text; where it is shorter than its pieces, it was cut, and the rest is not shown.
      pieces: the part of the text that each token made; without them nothing is tinted.
      before: the prompt, to be shown before it.
    """
    if text is None:
        return reply._repr_html_()
    drafted = zip(pieces, reply.drafted, strict=False) if pieces else [(text, False)]
    return mark_drafts(_cut(drafted, len(text)), reply.caption, before)


def _cut(pieces: Iterator[tuple[str, bool]], room: int) -> Iterator[tuple[str, bool]]:
    """The first ``room`` characters of the pieces."""
    for text, is_draft in pieces:
        yield text[:room], is_draft
        room -= len(text[:room])
