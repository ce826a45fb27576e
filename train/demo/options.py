"""The options of `train.demo`, and their checks."""

import dataclasses
import pathlib

from redrafter_jax.devices import memory, placement
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, json_files
from redrafter_jax.model.target import TargetConfig
from train.demo import pretrain

RECORD_FILE = "demo.json"  # the options; it marks the folder of a run
CORPUS_FILE = "corpus.json"
CONTEXT_TOKENS = 2048  # of the target


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the embedded pair: a small Llama target that writes Python, and its draft heads."""

    work: pathlib.Path = pathlib.Path("demo-run")
    """Folder of the run: tokens, checkpoints, logs, and the finished `pair/`."""
    packages: tuple[str, ...] = ()
    """Installed packages whose Python files are added to the standard library's for training, but for one in four (`corpus`)."""
    vocab: int = 2048
    """Tokens in the vocabulary."""
    width: int = 320
    """Hidden size of the target."""
    layers: int = 6
    """Layers of the target."""
    heads: int = 5
    """Query heads of the target; they share one key-value head."""
    feed_forward: int = 896
    """Feed-forward width of the target."""
    row_length: int = 256
    """Tokens in a training row."""
    batch: int = 16
    """Rows in a training step of the target."""
    steps: int = 4000
    """Training steps of the target."""
    decay: float = 0.5
    """Share of the target's steps over which its learning rate falls to zero."""
    unloop_rounds: int = 5
    """Rounds that make repetitions in the target's own text unlikely, so that it does not end in loops."""
    save_every: int = 100
    """Steps between checkpoints."""
    slim_steps: int = 600
    """Training steps of the slim head."""
    head_steps: int = 600
    """Training steps of the paper's head."""
    replies: int = 2400
    """Rows of the target's own greedy text that the heads learn from, beside equally many rows of the corpus. Each row
    continues 64 tokens of the corpus."""

    def target_config(self) -> TargetConfig:
        return TargetConfig(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=1,
            head_dim=self.width // self.heads,
            tie_word_embeddings=True,
            max_position_embeddings=CONTEXT_TOKENS,
        )

    def schedule(self) -> pretrain.PretrainSchedule:
        return pretrain.PretrainSchedule(self.steps, self.batch, decay=self.decay)


OPTION_RANGES = {  # of each integer
    "vocab": (257, 1 << 16),  # 256 bytes and the end of a text; ids are kept in 16 bits
    "width": (1, 1 << 14),
    "layers": (1, 256),
    "heads": (1, 256),
    "feed_forward": (1, 1 << 17),
    "row_length": (16, CONTEXT_TOKENS),
    "batch": (1, 4096),
    "steps": (1, 10**8),
    "unloop_rounds": (0, 1000),
    "save_every": (1, 10**8),
    "slim_steps": (1, 10**8),
    "head_steps": (1, 10**8),
    "replies": (1, 10**6),
}


def check(options: Options) -> None:
    """Raises BadInput for options out of range, and for a target that is too large to train in the memory."""
    for name, (low, high) in OPTION_RANGES.items():
        if not low <= getattr(options, name) <= high:
            raise BadInput(f"--{name.replace('_', '-')} should be from {low} to {high}, not {getattr(options, name)}")
    if not 0 < options.decay <= 1:
        raise BadInput(f"--decay should be above 0 and at most 1, not {options.decay}")
    if options.width % (2 * options.heads):
        raise BadInput(f"--width should be a multiple of twice --heads ({options.heads}), not {options.width}")
    weights = 3 * placement.bytes_of_target(options.target_config(), "float32")  # float32, with gradients and a moment
    logits = 4 * options.batch * options.row_length * options.vocab
    memory.check_bytes(weights + logits, "--batch, --row-length, --vocab, --width, --layers and --feed-forward of this size")
    claims.check_folder(options.work, "--work")
    claims.check_no_model(options.work, "--work")
    options_of, corpus_of = (json_files.find_object(options.work / name) or {} for name in (RECORD_FILE, CORPUS_FILE))
    if not ("unloop_rounds" in options_of or "origins" in corpus_of):
        claims.check_empty(options.work, "--work", "a run of train.demo")
