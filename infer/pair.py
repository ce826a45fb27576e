"""A target, its head and its tokenizer, by folder or hub name; the embedded pair; what each device decodes with by default."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax

from redrafter_jax import config, weights
from redrafter_jax.decode.engine import Engine, Limits, Reply, Sampling
from redrafter_jax.decode.loop import Shape
from redrafter_jax.errors import BadInput
from redrafter_jax.mesh import make_mesh

EMBEDDED = pathlib.Path(__file__).parent / "demo_pair"
EMBEDDED_PROMPT = 'class Stack:\n    """A last-in, first-out list of items."""\n\n    def __init__(self'


def default_shape(platform: str) -> Shape:
    """A CPU pays for every node, so a narrow tree wins there; an accelerator scores dozens of nodes for the price of one
    (docs/benchmarks.md)."""
    return Shape(width=1, length=3) if platform == "cpu" else Shape(width=8, length=5)


def embedded_head(platform: str) -> pathlib.Path:
    """The slim head drafts at less than half the cost, which is what counts on a CPU."""
    return EMBEDDED / ("drafter_slim" if platform == "cpu" else "drafter")


@dataclasses.dataclass
class Pair:
    """What `load` returns: an engine and, where the target's folder has one, a tokenizer."""

    engine: Engine
    tokenizer: object | None

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=True)

    def complete(self, prompt: str, max_new_tokens: int = 128, seed: int = 0, **sampling) -> "Completion":
        """The continuation of a text; ``sampling`` as in `Sampling` (temperature, top_k, top_p, rule)."""
        prompts, limits = [self.encode(prompt)], Limits(new=max_new_tokens)
        reply = next(self.engine.generate(prompts, Sampling(**sampling), limits, [seed]))
        return Completion(self.decode(reply.token_ids), reply)


@dataclasses.dataclass(frozen=True)
class Completion:
    """A text and the reply it was decoded from."""

    text: str | None
    reply: Reply


def load(
    target: str = "",
    drafter: str = "",
    shape: Shape | None = None,
    dtype: str = "float32",
    mesh: tuple[int, int] = (1, 1),
    ignore_eos: bool = False,
) -> Pair:
    """A pair from folders or hub names; without any, the embedded one; with a target alone, plain decoding.

    Raises:
      BadInput: something is missing, broken, or does not fit together.
    """
    jax.set_mesh(make_mesh(*mesh))
    platform = jax.devices()[0].platform
    folder = _folder(target, "--target") if target else _embedded("target")
    head = _folder(drafter, "--drafter") if drafter else None if target else embedded_head(platform)
    fields = config.read_json(folder, "--target")
    target_config = config.target_config(fields, "--target")
    _check_mesh(target_config, mesh)
    if head is not None:
        head_config = config.drafter_config(config.read_json(head, "--drafter"), "--drafter")
        config.check_pair(target_config, head_config, "--drafter")
    loaded_head = None if head is None else weights.load_drafter(head, dtype, "--drafter")
    model = weights.load_target(folder, dtype, "--target")
    stops = () if ignore_eos else stop_ids(folder, fields)
    return Pair(Engine(model, loaded_head, shape or default_shape(platform), stops), load_tokenizer(folder))


def _embedded(part: str) -> pathlib.Path:
    if not (EMBEDDED / part / "config.json").is_file():
        raise BadInput(f"--target: the embedded pair is not in {EMBEDDED}; name a target, or train one with python -m train.demo")
    return EMBEDDED / part


def _folder(name: str, option: str) -> pathlib.Path:
    """A folder as it is, or a hub name (OWNER/MODEL) fetched into huggingface_hub's cache."""
    path = pathlib.Path(name)
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return path
    import huggingface_hub

    try:
        patterns = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja"]
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated kinds
        reason = str(error).splitlines()[0]
        raise BadInput(f"{option}: {name} is neither a folder nor a model that the hub hands out ({reason})") from None


def _check_mesh(target, mesh: tuple[int, int]) -> None:
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        if getattr(target, name) % mesh[1]:
            raise BadInput(f"--mesh: {mesh[1]} model shards do not divide the target's {name} {getattr(target, name)}")


def stop_ids(folder: pathlib.Path, fields: dict) -> tuple[int, ...]:
    """The ids that end a reply, from generation_config.json where there is one, else from config.json."""
    generation = folder / "generation_config.json"
    if generation.is_file():
        fields = fields | {k: v for k, v in json.loads(generation.read_text()).items() if k == "eos_token_id"}
    stop = fields.get("eos_token_id")
    return () if stop is None else tuple(stop) if isinstance(stop, list) else (stop,)


def load_tokenizer(folder: pathlib.Path):
    """The folder's tokenizer, or None where it has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the tokenizer's own format makes it raise
        raise BadInput(f"--target: the tokenizer in {folder} cannot be read ({str(error).splitlines()[0]})") from None


def batches(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
