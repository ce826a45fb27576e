"""What each token of a vocabulary is as text and as bytes, one by one, for log-probabilities. Not here: text (`infer/text.py`)."""

import functools
import re

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte of its own, as SentencePiece writes it
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that a byte-level vocabulary writes as they are


class TokenTexts:
    """The tokens of a tokenizer, each as it is alone."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
        self._special = {int(token) for token in tokenizer.added_tokens_decoder}
        self.bytes_of = functools.cache(self._bytes_of)

    def text_of(self, token: int) -> str:
        """Its text; where its bytes are no whole characters `bytes:` and these, as OpenAI's interface writes them."""
        found = self.bytes_of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def _bytes_of(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        if token not in self._special and (byte := BYTE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        if token not in self._special and self._is_byte_level and all(letter in _alphabet() for letter in piece):
            return bytes(_alphabet()[letter] for letter in piece)
        return self._tokenizer.decode([token], clean_up_tokenization_spaces=False).encode()


@functools.cache
def _alphabet() -> dict[str, int]:
    """The bytes that the letters of a byte-level vocabulary stand for: those that are not printable come behind 255, in order."""
    others = [byte for byte in range(256) if byte not in PRINTABLE]
    return {chr(byte): byte for byte in PRINTABLE} | {chr(256 + number): byte for number, byte in enumerate(others)}
