"""The vocabularies of text: one token for each character of printable ASCII, each byte of UTF-8, or each word of a
task."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from rayexp.tasks.base import Vocabulary

SPECIAL = ("<pad>", "<bos>", "<eos>")
#: Separator of a question and its answer.
BREAK = "\n"
#: A word with the blank before it, or any other character. Each digit is a token, so that numbers can be learnt.
WORD = r" ?[A-Za-z]+|[\s\S]"


@dataclass(frozen=True)
class Characters(Vocabulary):
    """A vocabulary of symbols that are written without blanks between them."""

    units = "characters"

    def prompt(self, question: str) -> list[int]:
        """Return the token ids of the prompt for a question."""
        return [self.bos, *self.plain(question + BREAK)]

    def completion(self, answer: str) -> list[int]:
        """Return the token ids of the completion for an answer, ``<eos>`` included."""
        return [*self.plain(answer), self.eos]

    def answer(self, completion: Sequence[int]) -> str:
        """Return the text of a completion without its end."""
        return self.decode(completion[:-1] if completion and completion[-1] == self.eos else completion)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. Special symbols in it are read as such. Raises KeyError or ValueError on an
        unknown symbol."""
        pieces = re.split(f"({'|'.join(SPECIAL)})", text)
        return [token for piece in pieces for token in ([self._ids[piece]] if piece in SPECIAL else self.plain(piece))]

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text, none of them special. Raises ValueError on a character that is no symbol."""
        self.require_known(text)
        return [self._ids[character] for character in text]

    def require_known(self, text: str) -> None:
        """Raise ValueError if a text has a character that is no symbol."""
        if unknown := sorted(set(text) - self._ids.keys()):
            raise ValueError(
                f"the text {text!r} has {unknown[0]!r}, which is not printable ASCII; remove it, or set tokens='bytes'"
            )

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the characters of token ids. An embedding row without a symbol gives ``<unused>``."""
        return "".join(self.symbols[token] if token < len(self.symbols) else "<unused>" for token in tokens)


@dataclass(frozen=True)
class Bytes(Characters):
    """A vocabulary of the special symbols and the 256 bytes."""

    units = "bytes"

    def plain(self, text: str) -> list[int]:
        """Return the token ids of the bytes of a text."""
        return [len(SPECIAL) + byte for byte in text.encode()]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids. A byte that is invalid UTF-8 is shown like ``\\\\xff``."""
        parts = [
            bytes([token - len(SPECIAL)]) if token >= len(SPECIAL) else self.symbols[token].encode()
            for token in tokens
            if token < len(self.symbols)
        ]
        return b"".join(parts).decode(errors="backslashreplace")


@dataclass(frozen=True)
class Words(Characters):
    """A vocabulary of words and characters. An unknown word is spelt with the characters."""

    units = "pieces"

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Return the vocabulary of all words and characters in some texts."""
        words = {word for text in texts for word in re.findall(WORD, text)}
        return cls((*CHARACTERS, *sorted(words.difference(CHARACTERS))))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the vocabulary as a tokenizer of the library ``tokenizers``, which takes the longest symbol first."""
        found = models.WordPiece(self._ids, unk_token=SPECIAL[0], continuing_subword_prefix="")
        tokenizer = Tokenizer(found)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
        return tokenizer

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text, none of them special. Raises ValueError on a character that is no symbol."""
        self.require_known(text)
        return self.tokenizer.encode(text, add_special_tokens=False).ids


CHARACTERS = (*SPECIAL, BREAK, *map(chr, range(32, 127)))
VOCABULARIES: dict[str, Characters] = {
    "characters": Characters(CHARACTERS),
    "bytes": Bytes((*SPECIAL, *(f"0x{byte:02x}" for byte in range(256)))),
}
