"""Options and prompts with which tests start `infer.generate` on a golden pair."""

from tests.support import MODELS

PAIR = ["--target", str(MODELS / "target_mha"), "--drafter", str(MODELS / "drafter_mha_rnn")]
IDS = [[1, 5, 9, 77], [1, 5, 9, 78, 100, 3], [4, 4, 8]]
SHORT = ["--max-new-tokens", "20", "--beam-width", "2", "--beam-length", "3"]
