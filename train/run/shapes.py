"""The shapes of what a recipe trains: the one place where the methods differ before they are trained."""

import jax

from redrafter_jax.errors import BadInput
from redrafter_jax.files.heads import HeadConfig
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.lora import Adapter, LoraConfig
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.model.parts import evenly
from redrafter_jax.model.target import TargetConfig
from train.run.recipe import Recipe


def make_head_config(target: TargetConfig, recipe: Recipe) -> HeadConfig:
    """The shapes of a recipe's head.

    Raises:
      BadInput: a number of the recipe is out of range, or its draft vocabulary is larger than the target's, or it reads more layers
        than the target has before its last.
    """
    recipe.check()
    V, D = target.vocab_size, target.hidden_size
    if recipe.head_vocab > V:
        raise BadInput(f"--head-vocab should be at most the target's vocabulary of {V}, not {recipe.head_vocab}")
    if recipe.depths >= target.num_hidden_layers:
        layers = target.num_hidden_layers
        raise BadInput(f"--depths should be below the target's {layers} layers, not {recipe.depths}; give --depths {layers - 1}")
    if recipe.is_medusa:
        return MedusaConfig(
            vocab_size=V,
            hidden_size=D,
            num_heads=recipe.positions,
            num_blocks=recipe.blocks,
            tied=recipe.head == "slim",
            draft_vocab=recipe.head_vocab,
        )
    return DrafterConfig(
        vocab_size=V,
        hidden_size=D,
        exit_size=2 * D if recipe.head == "full" else D,
        num_blocks=recipe.blocks,
        rnn=recipe.rnn,
        bigram=min(recipe.bigram, V),
        gated=recipe.gated,
        depths=evenly(target.num_hidden_layers, recipe.depths),
        tied=recipe.head == "slim",
        draft_vocab=recipe.head_vocab,
    )


def make_lora_config(recipe: Recipe) -> LoraConfig:
    """The shapes of the target's adapter."""
    return LoraConfig(recipe.lora_rank, recipe.lora_alpha)


def artefacts_to_decode(target: TargetConfig, recipe: Recipe) -> dict:
    """The shapes of what decoding needs of a checkpoint, by artefact: the head, and the adapter where there is one."""
    found = {"head": jax.eval_shape(lambda: make_head_config(target, recipe).make(jax.random.key(0)))}
    if recipe.trains_target:
        found["adapter"] = jax.eval_shape(lambda: Adapter(jax.random.key(0), target, make_lora_config(recipe)))
    return found
