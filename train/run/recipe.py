"""Recipes: how a head is trained, for any target and text; and recipes that are known to work."""

import dataclasses
from typing import ClassVar, Literal

from redrafter_jax.errors import BadInput

Labels = Literal["text", "greedy"]
MAX_TOKENS_PER_PART = 1 << 26  # that an update reads at once: a gibibyte on the host
MAX_VALUES = {  # of each integer of a recipe; a larger one is a typing error
    "blocks": 256,
    "positions": 64,
    "steps": 10**8,
    "batch": 1 << 16,
    "accumulate": 1 << 16,
    "row_length": 1 << 20,
    "save_every": 10**8,
    "log_every": 10**8,
    "evaluation_rows": 1 << 16,
    "head_vocab": 1 << 24,
    "warmup": 10**8,
    "evaluate_every": 10**8,
    "lora_rank": 1 << 12,
    "bigram": 1 << 14,
    "depths": 64,
}
PARTS = ("bigram", "gated", "depths")  # what a recurrent head may have beyond the paper's
LEAST_WEIGHT = 1e-6  # of a drafted position in the loss
MAY_BE_ZERO = ("head_vocab", "bigram", "depths", "warmup", "evaluate_every")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the weights, and how often a run saves, logs and evaluates."""

    GROUPS: ClassVar = {"the_target_too": "train_target"}

    method: Literal["recurrent", "medusa"] = "recurrent"
    """recurrent: ReDrafter's head; medusa: as many of Medusa's heads as there are drafted positions."""
    head: Literal["full", "slim", "paper", "best"] = "full"
    """full: the paper's head (medusa: each head has its own LM head); slim: exits at the target's width into the target's
    own LM head. paper: another name of full. best: slim, and what gained most for what it costs to decode:
    --decay 0.8 --distance-weight 0.5 --depths 2; options beside it change them, and --depths 0 stays in Apple's format."""
    head_vocab: int = 0
    """Tokens that the head can draft: the most frequent labelled tokens of the training data. 0: all tokens of the
    target. The LM head is most of a head's bytes, so fewer tokens make a round cheaper, and some drafts impossible."""
    rnn: bool = True
    """Whether the head's state is recurrent (the paper's) or the sum of the embeddings."""
    bigram: int = 0
    """Rank of a table of which token often follows which, whose logits are added to the head's; 0: none. From scratch 64 gains 2
    to 4% in 500 updates, a trained head about 1%. It weighs 2 R times the vocabulary, and is not in Apple's format."""
    gated: bool = False
    """Whether the state has gates (a GRU's). Late drafts get better, tokens per step 0 to 2% more, most of it sampled. A drafted
    token costs four products of D x D more, 35% with the embedded slim head. Not in Apple's format."""
    depths: int = 0
    """Inner layers of the target, evenly spaced, that the head reads beside the last one, as EAGLE-3 does. 2 gain 2 to 5% of tokens
    per step, for one product of 2 D x D in a round, which costs 2 to 4% with the embedded target, a larger one less. Not in
    Apple's format."""
    blocks: int = 2
    """Residual blocks of the head (medusa: of each head; the published ones have 1)."""
    positions: int = 5
    """Drafted positions that are trained (K)."""
    decay: float = 1.0
    """The loss of drafted position i, counted from 0, weighs DECAY to the power of i (Medusa's published recipe: 0.8). Below 1 the
    first drafts, which all others need, get better, and the last ones worse; it costs nothing to decode."""
    labels: Labels = "text"
    """text: the head reads and predicts the text; greedy: it predicts, at every place of the text, the tokens that the
    target would generate there (the paper's recipe). That costs another target pass for every drafted position."""
    distill_weight: float = 1.0
    """Share of soft labels, the target's own distributions, in the loss; the rest is the text itself."""
    distance_weight: float = 0.0
    """Share of the soft labels' loss that is the total variation between head and target, in place of the cross-entropy, late in
    the run: how often a sampled draft is refused. 0.5 gains 1 to 2% at T = 1, nothing at T = 0, and costs nothing to decode."""
    distance_start: float = 0.5
    """Share of the updates that the cross-entropy has alone, first; total variation teaches an untrained head little."""
    steps: int = 1000
    """Updates of the head."""
    batch: int = 8
    """Rows in an update."""
    accumulate: int = 1
    """Parts of an update's rows that are read in turn, where the rows do not fit at once. Each part is averaged over
    its own labels, and the parts count equally; this equals the update of one batch where the parts have equally many
    labels."""
    row_length: int = 256
    """Tokens in a row; examples are packed into rows, and attention never crosses from one to the next."""
    rate: float = 2e-3
    """Highest learning rate (AdamW)."""
    warmup: int = 50
    """Updates over which the learning rate rises; it then falls to zero along a cosine."""
    weight_decay: float = 0.01
    """Decay of matrices; biases do not decay."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    seed: int = 0
    """Decides the first weights and the order of the rows."""
    save_every: int = 100
    """Updates between checkpoints."""
    log_every: int = 10
    """Updates between lines of the log; the device waits for the host at these only."""
    evaluate_every: int = 200
    """Updates between evaluations on held-out examples; 0: none."""
    evaluation_rows: int = 32
    """Held-out rows of an evaluation, and held-out prompts that it decodes to measure tokens per step."""
    train_target: Literal["none", "lora"] = "none"
    """lora: after the head alone, the target is trained beside it by low-rank adapters of its q, k, v, o and feed-forward. Then the
    text is that of the merged target, and no longer the original's."""
    lora_rank: int = 16
    """Rank of the adapters (R)."""
    lora_alpha: float = 16.0
    """The adapters' products are multiplied by ALPHA / R."""
    lora_rate: float = 0.1
    """Highest learning rate of the adapters, as a factor of --rate."""
    lora_start: float = 0.3
    """Share of the updates in which the head learns alone, first."""
    kl_weight: float = 1.0
    """Weight of KL(original target || adapted target) in the loss, which keeps the target near the original (beta)."""
    text_weight: float = 0.0
    """Weight of the adapted target's own loss on the text."""
    through: float = 0.5
    """Probability that an update lets the head's gradient into the target. 0: never; 1: always, and then the target may make
    itself easy to predict at the cost of what it says."""

    @property
    def is_medusa(self) -> bool:
        return self.method == "medusa"

    @property
    def label(self) -> str:
        """What is trained, in a word."""
        return self.method if self.is_medusa else self.head

    @property
    def trains_target(self) -> bool:
        return self.train_target == "lora"

    @property
    def joint_from(self) -> int:
        """The updates after which the target is trained too."""
        return int(self.lora_start * self.steps)

    @property
    def distance_from(self) -> int:
        """The updates after which part of the loss is the total variation."""
        return int(self.distance_start * self.steps)

    def check(self) -> None:
        """Raises BadInput for a number out of its range."""
        if self.head in HEADS:
            raise BadInput(f"head should be full or slim in a recipe, and `named` makes one of {self.head}")
        for name, high in MAX_VALUES.items():
            low = 0 if name in MAY_BE_ZERO else 1
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"--{name.replace('_', '-')} should be from {low} to {high}, not {getattr(self, name)}")
        if self.batch % self.accumulate:
            raise BadInput(f"--accumulate should divide --batch, but {self.accumulate} does not divide {self.batch}")
        if self.batch // self.accumulate * self.row_length > MAX_TOKENS_PER_PART:
            raise BadInput(
                f"--batch {self.batch} rows of --row-length {self.row_length} in --accumulate {self.accumulate} parts are more than"
                f" {MAX_TOKENS_PER_PART} tokens at a time; give fewer, shorter, or more parts"
            )
        if self.row_length < self.positions + 2:
            raise BadInput(f"--row-length should be at least --positions + 2, not {self.row_length}")
        if not 0 <= self.distill_weight <= 1:
            raise BadInput(f"--distill-weight should be from 0 to 1, not {self.distill_weight}")
        for name in ("distance_weight", "distance_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"--{name.replace('_', '-')} should be from 0 to 1, not {getattr(self, name)}")
        if self.distance_weight > 0 and self.distill_weight == 0:
            raise BadInput("--distance-weight is a share of the soft labels' loss; give --distill-weight above 0 with it")
        if self.labels == "greedy" and self.distill_weight > 0:
            raise BadInput("--labels greedy has no soft labels: give --distill-weight 0 with it")
        if self.gated and not self.rnn:
            raise BadInput("--gated is of a recurrent state; leave out --no-rnn")
        parts = [name for name in PARTS if getattr(self, name)]
        if self.is_medusa and parts:
            raise BadInput(f"--{parts[0]} is of a recurrent head; leave out --method medusa")
        if not 0 < self.decay <= 1:
            raise BadInput(f"--decay should be above 0 and at most 1, not {self.decay}")
        if self.decay ** (self.positions - 1) < LEAST_WEIGHT:
            last = f"to the power of {self.positions - 1}, the last of --positions,"
            raise BadInput(
                f"--decay {self.decay} {last} is below {LEAST_WEIGHT:g}, and teaches nothing; give more, or fewer positions"
            )
        if not 0 < self.rate < 1:
            raise BadInput(f"--rate should be between 0 and 1, not {self.rate}")
        if not 0 <= self.weight_decay < 1:
            raise BadInput(f"--weight-decay should be from 0 to 1, not {self.weight_decay}")
        if not self.clip > 0:
            raise BadInput(f"--clip should be above 0, not {self.clip}")
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed should be from 0 to {2**32 - 1}, not {self.seed}")
        self._check_target()

    def check_against(self, weight_format: str | None) -> None:
        """Raises BadInput where a target whose matrices are in this format (`TargetConfig.weight_format`) cannot be trained."""
        if self.trains_target and weight_format is not None:
            instead = "leave out --weights, or take a float checkpoint"
            raise BadInput(f"--train-target lora adds to float matrices, and the target's are {weight_format}; {instead}")

    def _check_target(self) -> None:
        """The same of what trains the target."""
        changed = [name for name, usual in _TARGET_TOO.items() if getattr(self, name) != usual]
        if changed and not self.trains_target:
            raise BadInput(f"--{changed[0].replace('_', '-')} is of --train-target lora; give that too, or leave it out")
        if not 0 < self.lora_alpha <= 1 << 12:
            raise BadInput(f"--lora-alpha should be above 0 and at most {1 << 12}, not {self.lora_alpha}")
        if not 0 < self.lora_rate <= 100 or not self.lora_rate * self.rate < 1:
            raise BadInput(f"--lora-rate should be above 0 and at most 100, and --rate times it below 1, not {self.lora_rate}")
        if not 0 <= self.lora_start < 1:
            raise BadInput(f"--lora-start should be from 0 to below 1, not {self.lora_start}")
        for name in ("kl_weight", "text_weight"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise BadInput(f"--{name.replace('_', '-')} should be from 0 to 1000000, not {getattr(self, name)}")
        if not 0 <= self.through <= 1:
            raise BadInput(f"--through should be from 0 to 1, not {self.through}")
        if self.trains_target and self.through == self.kl_weight == self.text_weight == 0:
            raise BadInput("--through, --kl-weight and --text-weight are all 0, so nothing trains the target; raise one of them")
        if self.trains_target and self.labels == "greedy":
            raise BadInput("--train-target lora changes what the target generates, so it does not go with --labels greedy")


_TARGET_TOO = {  # the defaults of the options that say how a target is trained
    field.name: field.default for field in dataclasses.fields(Recipe) if field.name.startswith("lora_")
} | {name: getattr(Recipe, name) for name in ("kl_weight", "text_weight", "through")}
DOES_NOT_CHANGE_WEIGHTS = ("save_every", "log_every", "evaluate_every", "evaluation_rows")
"""Fields that a resumed run may change."""


def demo(head: Literal["full", "slim"] = "slim", steps: int = 600) -> Recipe:
    """The recipe for the embedded pair's target, on two CPU cores."""
    return Recipe(head=head, steps=steps, batch=8, row_length=256, rate=1e-2)


def vicuna_7b() -> Recipe:
    """The paper's recipe for Vicuna 7B: rows of 2048 tokens, 5 drafted positions, the full head."""
    return Recipe(head="full", steps=8000, batch=32, accumulate=4, row_length=2048, rate=1e-3, warmup=200, save_every=500)


PRESETS = {"demo": demo, "vicuna-7b": vicuna_7b}
HEADS = {"paper": {"head": "full"}, "best": {"head": "slim", "decay": 0.8, "distance_weight": 0.5, "depths": 2}}
"""Names of heads that stand for several fields of a recipe."""


def named(recipe: Recipe, head: str) -> Recipe:
    """The recipe with a head of one of these names (`HEADS`), of Medusa's heads without the parts that they cannot have; unchanged
    with any other."""
    fields = HEADS.get(head, {}).items()
    return dataclasses.replace(recipe, **{name: value for name, value in fields if not (recipe.is_medusa and name in PARTS)})
