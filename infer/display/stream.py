"""A reply in a notebook while it grows. Needs IPython, which every notebook has."""

from collections.abc import Sequence

from infer.calls import is_chat
from infer.display import markup
from infer.pair import Completion, Pair
from infer.prompts import Prompt, encode
from infer.text import pieces_of
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.request import Limits, Sampling


def stream(
    pair: Pair,
    prompt: str | Sequence[int] | Sequence[dict],
    max_new_tokens: int = 128,
    sampling: Sampling = Sampling(),
    seed: int = 0,
) -> Completion:
    """Shows the continuation of a prompt as it is decided, accepted drafts tinted; returns the completion. ``prompt`` is a
    text, which is shown too, token ids, or the messages of a chat.

    Raises:
      BadInput: the prompt does not fit the target, or a number is out of its range.
    """
    from IPython.display import HTML, display

    ids, before = ids_of(pair, prompt), prompt if isinstance(prompt, str) else ""
    area = display(HTML(""), display_id=True)
    for progress in pair.engine.stream([ids], sampling, Limits(new=max_new_tokens), [seed], rows=rows_of(pair)):
        grown = _completion(pair, ids, progress.replies[0])
        shown = HTML(markup.completion(grown.text, grown.reply, grown.pieces, before))
        if area is None:  # IPython without a notebook
            continue
        area.update(shown)
    return grown


def ids_of(pair: Pair, prompt: str | Sequence[int] | Sequence[dict]) -> list[int]:
    """The token ids of a text, of ids, or of messages.

    Raises:
      BadInput: it does not fit the target.
    """
    kind = "prompt" if isinstance(prompt, str) else "messages" if is_chat(prompt) else "token_ids"
    content = prompt if isinstance(prompt, str) else list(prompt)
    config = pair.engine.target.config
    return encode(Prompt("prompt", kind, content), pair.tokenizer, config.vocab_size, config.max_position_embeddings)


def rows_of(pair: Pair) -> int:
    """Rows of a batch for one prompt: one on each part of a mesh that splits rows."""
    return pair.engine.mesh.shape["data"]


def _completion(pair: Pair, ids: list[int], reply: Reply) -> Completion:
    if pair.tokenizer is None:
        return Completion(None, reply)
    pieces = pieces_of(pair.tokenizer, ids, reply.token_ids)
    return Completion("".join(pieces), reply, pieces)
