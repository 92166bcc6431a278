"""The vocabularies of text: a token for each character that can be printed in ASCII, or for each byte of UTF-8."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rayexp.tasks.base import Vocabulary

SPECIAL = ("<pad>", "<bos>", "<eos>")
#: Stands between a question and its answer.
BREAK = "\n"


@dataclass(frozen=True)
class Characters(Vocabulary):
    """A vocabulary whose symbols are written without blanks between them."""

    units = "characters"

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text in which special symbols are read as such. Raises KeyError or ValueError on an
        unknown one."""
        pieces = re.split(f"({'|'.join(SPECIAL)})", text)
        return [token for piece in pieces for token in ([self._ids[piece]] if piece in SPECIAL else self.plain(piece))]

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text, none of which is special. Raises ValueError on a character without one."""
        if unknown := sorted(set(text) - self._ids.keys()):
            raise ValueError(
                f"the text {text!r} has {unknown[0]!r}; allowed: the characters of printable ASCII, or tokens = 'bytes'"
            )
        return [self._ids[character] for character in text]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the characters of token ids; embedding rows without a symbol read ``<unused>``."""
        return "".join(self.symbols[token] if token < len(self.symbols) else "<unused>" for token in tokens)


@dataclass(frozen=True)
class Bytes(Characters):
    """A vocabulary of bytes, behind the special symbols."""

    units = "bytes"

    def plain(self, text: str) -> list[int]:
        """Return the token ids of the bytes of a text."""
        return [len(SPECIAL) + byte for byte in text.encode()]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids; a byte that is none of UTF-8 there is shown as ``\\\\xff``."""
        parts = [
            bytes([token - len(SPECIAL)]) if token >= len(SPECIAL) else self.symbols[token].encode()
            for token in tokens
            if token < len(self.symbols)
        ]
        return b"".join(parts).decode(errors="backslashreplace")


VOCABULARIES: dict[str, Characters] = {
    "characters": Characters((*SPECIAL, BREAK, *map(chr, range(32, 127)))),
    "bytes": Bytes((*SPECIAL, *(f"0x{byte:02x}" for byte in range(256)))),
}
