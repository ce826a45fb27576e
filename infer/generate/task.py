"""The task of an `infer.generate`, in types: which models, how to decode, where the replies go. Nothing here starts JAX."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Literal

from infer.options import Weights
from infer.settings import SettingsFile
from infer.stopping import Stops
from infer.workers import Workers
from redrafter_jax.decode.propose.lookup_sizes import LookupSizes
from redrafter_jax.decode.request import DRAFT_TOP_K, Limits, Sampling


@dataclasses.dataclass(frozen=True)
class Models:
    """A pair by folders or hub names (None: the embedded one), its number format and mesh (None: what suits the devices);
    ``has_head``: a head drafts, perhaps with a lookup beside it; ``lora``: an adapter that is merged into the target; ``weights``:
    how the target's matrices are stored."""

    target: str | None = None
    drafter: str | None = None
    has_head: bool = True
    dtype: Literal["float32", "bfloat16"] | None = None
    mesh: tuple[int, int] | None = None
    lora: str | None = None
    weights: Weights | None = None


@dataclasses.dataclass(frozen=True)
class WantedShape:
    """The fields of a `Shape`; a width or length of None is what suits the device, a budget of 0 is all nodes."""

    width: int | None = None
    length: int | None = None
    budget: int = 0
    tree: Literal["search", "beams", "chains"] = "search"
    draft_top_k: int = DRAFT_TOP_K


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to decode. Prompt i, counted from 0, is sampled with ``seed`` + i; ``batch`` prompts are decoded together; ``lookup``:
    drafts too, or alone; ``own_sampling``: the model's generation_config.json decides the sampling but for these fields (None: it
    does not); ``chat_template``: a file or a name (`templates.read`), in place of the tokenizer's own;
    ``chat_template_kwargs``: further variables of it; ``stops``: strings that end a reply; ``n``: replies to each prompt."""

    kind: Literal["speculative", "autoregressive", "compare"] = "speculative"
    beams: WantedShape = WantedShape()
    lookup: LookupSizes | None = None
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    seed: int = 0
    batch: int = 1
    ignore_eos: bool = False
    own_sampling: tuple[str, ...] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, object] = dataclasses.field(default_factory=dict)
    stops: Stops = Stops()
    n: int = 1

    @property
    def is_exact(self) -> bool:
        """Whether the text is the target's own (`Sampling.is_exact`)."""
        return self.sampling.is_exact


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where replies go: into a file, to standard output as JSON lines, or there as text, which may be coloured. workers: who makes
    them."""

    file: pathlib.Path | None = None
    json: bool = False
    no_color: bool = False
    workers: Workers = Workers()

    @property
    def shows_text(self) -> bool:
        return self.file is None and not self.json


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Where settings come from that were measured (by default from nowhere), and whether they may say to decode plainly."""

    source: SettingsFile = SettingsFile(None)
    may_be_plain: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """A command line of `infer.generate`, but for its prompts."""

    models: Models = Models()
    decoding: Decoding = Decoding()
    destination: Destination = Destination()
    tuning: Tuning = Tuning()
