"""The vocabulary of a task as a tokenizer that stock tools load, with the task's own token ids."""

import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rayexp import sources
from rayexp.tasks import Vocabulary
from rayexp.tasks.text.model_tokens import ModelVocabulary
from rayexp.tasks.text.vocabularies import Words

EACH = Regex(r"[\s\S]")
#: The tokenizer files of a pretrained model.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def save(vocabulary: Vocabulary, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, which ``AutoTokenizer.from_pretrained`` loads. For a
    pretrained model, copy its own files."""
    if isinstance(vocabulary, ModelVocabulary):
        place = sources.described(vocabulary.source, vocabulary.revision)
        for name in FILES:
            if (place / name).exists():
                shutil.copy(place / name, folder / name)
        return
    names = dict(zip(("pad_token", "bos_token", "eos_token"), vocabulary.symbols, strict=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(vocabulary), clean_up_tokenization_spaces=False, **names)
    fast.save_pretrained(folder)


def _tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    if isinstance(vocabulary, Words):
        return vocabulary.tokenizer
    ids = {symbol: token for token, symbol in enumerate(vocabulary.symbols)}
    one_by_one = pre_tokenizers.Split(EACH, "isolated")
    if vocabulary.units == "bytes":  # the library writes each byte as a character of its own
        first = len(ids) - 256
        ids = {symbol: token for symbol, token in ids.items() if token < first}
        ids |= {character: first + byte for byte, character in bytes_to_unicode().items()}
        as_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split, joined = pre_tokenizers.Sequence([as_characters, one_by_one]), decoders.ByteLevel()
    elif vocabulary.units == "characters":
        split, joined = one_by_one, decoders.Fuse()
    else:
        split, joined = pre_tokenizers.WhitespaceSplit(), None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = Tokenizer(models.WordLevel(ids))
    tokenizer.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    if joined:
        tokenizer.decoder = joined  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer
