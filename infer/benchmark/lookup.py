"""`python -m infer.benchmark.lookup FILE...`: how often the token after a match is the target's own next one.

FILE is JSONL of prompts, as of infer.generate; the embedded target continues them greedily. It prints `HIT_RATES` of
`redrafter_jax/decode/propose/lookup.py`: the share by the number of matched tokens, over all files.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import infer
from infer import prompts
from infer.command import run_command
from redrafter_jax.decode.engine import Limits

LONGEST, NEW = 8, 128


def latest_match(text: Sequence[int], longest: int) -> tuple[int, int]:
    """How many of the last tokens of a text, at most ``longest``, occur before, and the token behind the latest place where most
    of them do; (0, -1) without a match."""
    best, follows, size = 0, -1, len(text)
    for end in range(size - 2, -1, -1):
        matched = 0
        while matched < min(longest, end + 1) and text[end - matched] == text[size - 1 - matched]:
            matched += 1
        if matched > best:
            best, follows = matched, text[end + 1]
    return best, follows


def hit_rates(texts: Iterable[tuple[list[int], list[int]]], longest: int = LONGEST) -> dict[int, tuple[float, int]]:
    """For each number of matched tokens the share of hits over all tokens of the replies but the first, and how many there were;
    ``texts`` are prompts with their replies."""
    tried, hit = Counter(), Counter()
    for prompt, reply in texts:
        for at in range(1, len(reply)):
            matched, follows = latest_match([*prompt, *reply[:at]], longest)
            tried[matched] += 1
            hit[matched] += follows == reply[at]
    return {matched: (hit[matched] / tried[matched], tried[matched]) for matched in sorted(tried) if matched}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(files: list[str]) -> None:
    pair = infer.load(ignore_eos=True)
    engine, texts = pair.engine, []
    for file in files:
        given, config = prompts.read((), file), engine.target.config
        ids = [prompts.encode(each, pair.tokenizer, config.vocab_size, config.max_position_embeddings) for each in given]
        texts += zip(ids, (reply.token_ids for reply in engine.generate(ids, limits=Limits(NEW))), strict=True)
    for matched, (rate, tried) in hit_rates(texts).items():
        print(f"{matched:2d} tokens matched{'+' * (matched == LONGEST)}: {rate:.3f} of {tried}")


if __name__ == "__main__":
    sys.exit(main())
