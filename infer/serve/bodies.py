"""The bodies that the server reads: fields of OpenAI's interface, and those of vLLM that go beyond it, under their names. Our own
are `max_seconds`, `return_drafts` and `return_metrics`.

What is neither in these classes nor in `UNSUPPORTED` is ignored. Not here: what the fields come to (`orders.py`).
"""

from typing import Any, ClassVar

import pydantic

# Fields of OpenAI's interface and of vLLM that would change the reply, and the values with which they would not.
UNSUPPORTED = {
    "add_generation_prompt": (True,), "allowed_token_ids": ([],), "audio": (), "bad_words": ([],), "best_of": (1,),
    "chat_template": (), "chat_template_kwargs": ({},), "continue_final_message": (False,), "documents": ([],),
    "function_call": ("none",), "functions": ([],), "guided_choice": (), "guided_grammar": (), "guided_json": (),
    "guided_regex": (), "length_penalty": (1,), "logit_bias": ({},), "logits_processors": ([],), "min_p": (0,),
    "modalities": (["text"],), "prediction": (), "prompt_embeds": (), "prompt_logprobs": (0,), "reasoning_effort": (),
    "response_format": ({"type": "text"},), "return_token_ids": (False,), "skip_special_tokens": (True,),
    "structured_outputs": (), "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],),
    "truncate_prompt_tokens": (), "use_beam_search": (False,), "verbosity": ("medium",), "web_search_options": (),
}  # fmt: skip


IN_MESSAGES = {"audio": (), "function_call": (), "tool_call_id": (), "tool_calls": ([],)}  # the same of a message


def _unsupported(fields: dict[str, Any] | None, known: dict[str, tuple]) -> list[str]:
    return [name for name, value in (fields or {}).items() if name in known and value is not None and value not in known[name]]


class Fields(pydantic.BaseModel):
    """A JSON object whose other fields are kept, so that those that are known and not supported can be named."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow")


class StreamOptions(Fields):
    include_usage: bool | None = None


class Body(Fields):
    """What completions and chat completions have in common. None, or a field that is left out, is its default. of_form: what of
    `UNSUPPORTED` is the form's alone."""

    of_form: ClassVar[dict[str, tuple]]

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: str | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    max_seconds: float | None = None
    return_metrics: bool | None = None
    return_drafts: bool | None = None

    def unsupported(self) -> list[str]:
        """The known fields without support that ask for something."""
        return sorted(_unsupported(self.model_extra, UNSUPPORTED | self.of_form))


class CompletionBody(Body):
    of_form = {"add_special_tokens": (True,)}

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = None


class Content(Fields):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(Fields):
    role: str
    content: str | list[Content] | None = None


class ChatBody(Body):
    of_form = {"add_special_tokens": (False,)}

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    echo: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def unsupported(self) -> list[str]:
        of_messages = {name for message in self.messages for name in _unsupported(message.model_extra, IN_MESSAGES)}
        return sorted([*super().unsupported(), *(["echo"] if self.echo else []), *of_messages])


def messages_of(body: ChatBody) -> list[dict[str, Any]]:
    """The messages as a chat template reads them: of each its role, its text, and its name where it has one."""
    return [_plain(message) for message in body.messages]


def _plain(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content if part.text is not None)
    name = (message.model_extra or {}).get("name")
    return {"role": message.role, "content": content} | ({"name": name} if isinstance(name, str) else {})


def foreign_parts(body: ChatBody) -> list[str]:
    """The kinds of content that are no text, such as `image_url`."""
    parts = [part for message in body.messages if isinstance(message.content, list) for part in message.content]
    return sorted({part.type for part in parts if part.type != "text" or part.text is None})
