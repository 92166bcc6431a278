"""The vocabulary: one token a symbol. Letters are numbered 0..25 in alphabet A and 26..51 in alphabet B."""

from collections.abc import Iterable

ALPHABET = 26

PAD, BOS, EOS, COLON, EQUALS, SEMICOLON, TRAVERSE, SHIFT = range(8)
LETTER0 = 8
SPECIAL = ("<pad>", "<bos>", "<eos>", ":", "=", ";", "T", "S")
SYMBOLS = (*SPECIAL, *(f"{alphabet}{i}" for alphabet in "ab" for i in range(ALPHABET)))
#: Rows of the embedding table. 60 symbols, rounded up to a multiple of 64: a friendlier shape for GPUs.
SIZE = 64
OPERATIONS = {"T": TRAVERSE, "S": SHIFT}

_ID = {symbol: token for token, symbol in enumerate(SYMBOLS)}


def encode(text: str) -> list[int]:
    """Token ids of blank-separated symbols, e.g. ``"<bos> a0 a1 : T ="``. Raises KeyError on an unknown symbol."""
    return [_ID[symbol] for symbol in text.split()]


def decode(tokens: Iterable[int]) -> str:
    """Symbols of token ids, blank-separated; rows of the embedding table without a symbol read ``<unused>``."""
    return " ".join(SYMBOLS[token] if token < len(SYMBOLS) else "<unused>" for token in tokens)
