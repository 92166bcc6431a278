"""The symbols of strings. Letters are numbered 0..25 in alphabet A and 26..51 in alphabet B."""

from rayexp.tasks.base import Vocabulary

ALPHABET = 26

COLON, EQUALS, SEMICOLON, TRAVERSE, SHIFT = range(3, 8)
LETTER0 = 8
LETTERS = tuple(f"{alphabet}{i}" for alphabet in "ab" for i in range(ALPHABET))
VOCABULARY = Vocabulary(("<pad>", "<bos>", "<eos>", ":", "=", ";", "T", "S", *LETTERS))
OPERATIONS = {"T": TRAVERSE, "S": SHIFT}
