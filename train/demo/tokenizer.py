"""The embedded pair's tokenizer: a byte-level BPE trained by the `tokenizers` library."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from train.demo.corpus import SourceFile

END_OF_TEXT = "<|endoftext|>"


def train(sources: list[SourceFile], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of ``vocab_size`` ids; id 0 ends a file, and no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((source.text for source in sources), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def encode(tokenizer: PreTrainedTokenizerFast, sources: list[SourceFile]) -> list[list[int]]:
    """The ids of every file, each with the end-of-text id at its end."""
    encoded = tokenizer(([source.text for source in sources]), add_special_tokens=False, verbose=False)["input_ids"]
    return [ids + [tokenizer.eos_token_id] for ids in encoded]
