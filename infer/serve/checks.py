"""Checks of the options of `infer.serve`, before anything is loaded. Raises BadInput, one sentence that names the option."""

import importlib.util
import ipaddress
import os
import pathlib

from infer import drafting, templates
from infer.options import changed, check_number, check_range, check_ranges
from infer.settings import NONE
from redrafter_jax.errors import BadInput

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "openai")  # of the extra
KEY_VARIABLE = "REDRAFTER_API_KEY"
RANGES = {"port": (0, 65535), "max_queue": (0, 100_000), "max_request_bytes": (1024, 1 << 30)}
REAL_RANGES = {"look_ms": (1.0, 10_000.0), "max_seconds": (0.1, 86_400.0), "drain_seconds": (0.0, 86_400.0)}
CHUNK_TOKENS = (16, 8192)
OF_A_SEARCH = ("beam_width", "beam_length", "node_budget", "draft_top_k")


def alone(options) -> None:
    """Checks the command's `Options`: ranges, and options that exclude each other. Raises BadInput."""
    for name in ("beam_width", "beam_length", "node_budget", "draft_top_k", "batch_size", "max_length", "logprobs"):
        check_number(name, getattr(options, name))
    check_ranges(RANGES, {name: getattr(options, name) for name in RANGES})
    for name, (low, high) in REAL_RANGES.items():
        check_range(name, getattr(options, name), low, high)
    for name in ("max_prompt_tokens", "max_tokens_limit"):
        check_range(name, getattr(options, name), 1, 10**7)
    if options.chunk_tokens is not None:
        check_range("chunk_tokens", options.chunk_tokens, *CHUNK_TOKENS)
        if options.chunk_tokens % CHUNK_TOKENS[0]:
            raise BadInput(f"--chunk-tokens should be a multiple of {CHUNK_TOKENS[0]}, not {options.chunk_tokens}")
    templates.read_kwargs(options.chat_template_kwargs)
    options.group.check()
    if options.prompt_logprobs and not options.logprobs:
        raise BadInput(
            "--prompt-logprobs reports as many as --logprobs says, and --logprobs 0 leaves them out; leave out one of them"
        )
    drafting.check(options.drafter, options.beside, None, None)
    searches = changed(options, OF_A_SEARCH)
    drafting.check_search(options.drafter, searches)
    if options.target is not None and options.drafter is None and options.decoding != "autoregressive":
        raise BadInput("--drafter is missing: name the head for --target, or use --decoding autoregressive")
    if options.decoding == "autoregressive" and options.beside is not None:
        raise BadInput("--with lookup drafts beside a head, and --decoding autoregressive drafts nothing; leave out one of them")
    if options.settings not in (None, NONE) and chooses_search(options):
        raise BadInput("--settings chooses how a head drafts, and so do other options; leave out one of them")


def chooses_search(options) -> bool:
    """Whether the options say themselves how to draft, so that no settings are read."""
    drafts_otherwise = not drafting.has_head(options.drafter) or options.beside is not None or options.decoding == "autoregressive"
    return drafts_otherwise or bool(changed(options, OF_A_SEARCH))


def packages() -> None:
    """Raises BadInput where a package of the extra is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"infer.serve needs {' and '.join(missing)}; pip install -r requirements-serve.txt, or redrafter-jax[serve]")


def read_keys(file: pathlib.Path | None) -> list[bytes]:
    """The keys in a file, or in the environment. An error never shows one.

    Raises:
      BadInput: the file cannot be read, or has no key.
    """
    if file is None:
        only = os.environ.get(KEY_VARIABLE, "").strip()
        return [only.encode()] if only else []
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(f"--api-key-file: {file} cannot be read ({error.strerror})") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise BadInput(f"--api-key-file: {file} has no key; it should have one on each line")
    return keys


def is_of_this_machine(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
