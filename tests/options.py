"""Options and prompts with which tests start `infer.generate` on a golden pair."""

from infer.prompts import Prompt
from infer.turns import Turns
from tests.support import MODELS

PAIR = ["--target", str(MODELS / "target_mha"), "--drafter", str(MODELS / "drafter_mha_rnn")]
IDS = [[1, 5, 9, 77], [1, 5, 9, 78, 100, 3], [4, 4, 8]]
SHORT = ["--max-new-tokens", "20", "--beam-width", "2", "--beam-length", "3"]


def asked_for(ids) -> Turns:
    """The turns of prompts that are token ids."""
    given = [Prompt(f"prompt {number}", "token_ids", list(each)) for number, each in enumerate(ids)]
    return Turns(given, lambda prompt: prompt.content)
