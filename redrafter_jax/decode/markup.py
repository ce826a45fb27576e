"""A reply as HTML for a notebook: its tokens with the accepted drafts tinted, and a legend. Not here: a tokenizer."""

import html
from collections.abc import Iterable

TINT = "background:rgba(46,160,67,.28);color:inherit;border-radius:3px"  # seen on a light and on a dark page
BOX = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;margin:0"
SMALL = "font-size:85%;opacity:.8;margin-top:.4em"


def mark_drafts(pieces: Iterable[tuple[str, bool]], caption: str, before: str = "") -> str:
    """The pieces of a reply, one after the other.

    Args:
      pieces: the text of each token, and whether it was an accepted draft.
      caption: a line below, as text.
      before: what stands before the reply, such as the prompt; it is shown fainter.
    """
    prompt = f'<span style="opacity:.6">{html.escape(before)}</span>' if before else ""
    text = "".join(map(_piece, pieces))
    legend = f'<mark style="{TINT}">&nbsp;drafted and accepted&nbsp;</mark> the rest is the target\'s own choice.'
    # HTML drops a line break right behind <pre>, so there is one that may be dropped
    return f'<pre style="{BOX}">\n{prompt}{text}</pre><div style="{SMALL}">{legend} {html.escape(caption)}</div>'


def _piece(piece: tuple[str, bool]) -> str:
    text, is_draft = piece
    return f'<mark style="{TINT}">{html.escape(text)}</mark>' if is_draft and text else html.escape(text)
