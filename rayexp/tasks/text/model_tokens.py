"""The tokenizer of a pretrained model, for tasks of text in that model's own tokens."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import model_validator
from tokenizers import Tokenizer

from rayexp import sources
from rayexp.config import Value
from rayexp.tasks.text.vocabularies import BREAK, Characters


@dataclass(frozen=True)
class ModelVocabulary(Characters):
    """The tokens of a pretrained model.

    source, revision: origin of its files (``rayexp.sources``). Only these two travel between processes. template: the
    chat template that turns a question into a prompt; without one a line break ends the question. end: a text that ends
    an answer in place of the end token, if there is one.
    """

    units = "pieces"
    symbols: tuple[str, ...] = field(compare=False, repr=False)
    source: str = ""
    revision: str = ""
    template: str | None = None
    end: str = ""

    def __reduce__(self) -> Any:
        return read, (self.source, self.revision, self.template is not None, self.end)

    @property
    def size(self) -> int:
        return len(self.symbols)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return _tokenizer(sources.described(self.source, self.revision))

    def prompt(self, question: str) -> list[int]:
        """See ``Characters.prompt``. Raises ValueError on a question with a special token in it."""
        self.require_known(question)
        if self.template is None:  # the format of pretraining texts: after <bos>, if there is one
            return self.tokenizer.encode(question + BREAK).ids
        message = {"role": "user", "content": question}
        names = {"bos_token": self.symbols[self.bos], "eos_token": self.symbols[self.eos]}
        chat = _compiled(self.template).render(messages=[message], add_generation_prompt=True, **names)
        return self.encode(chat)

    def completion(self, answer: str) -> list[int]:
        """See ``Characters.completion``. Raises ValueError on an answer that contains the text that ends answers."""
        if self.end and self.end in answer:
            raise ValueError(f"the answer {answer!r} contains end={self.end!r}; choose an end that no answer contains")
        return self.plain(answer + self.end) if self.end else super().completion(answer)

    def end_of(self, completion: Sequence[int]) -> int | None:
        """See ``Vocabulary.end_of``. If ``end`` is set, the end is the first token with which the text contains it."""
        if not self.end:
            return super().end_of(completion)
        if self.end not in self.decode(completion):
            return None
        return next(n for n in range(1, len(completion) + 1) if self.end in self.decode(completion[:n]))

    def answer(self, completion: Sequence[int]) -> str:
        """See ``Characters.answer``."""
        return self.decode(completion).partition(self.end)[0] if self.end else super().answer(completion)

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text without special tokens. Raises ValueError if it has one."""
        self.require_known(text)
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. Special tokens in it are read as such."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids, including special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    def require_known(self, text: str) -> None:
        """Raise ValueError if a text has a special token, because the model would read it as such."""
        if found := [symbol for symbol in self._special if symbol in text]:
            raise ValueError(f"the text {text!r} has {found[0]!r}, a special token of {self.source}; leave it out")

    @cached_property
    def _special(self) -> list[str]:
        return [token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special]


@lru_cache(maxsize=8)
def read(source: str, revision: str, chat: bool, end: str = "") -> ModelVocabulary:
    """Return the vocabulary of a source. Raises ValueError if it has no tokenizer, end token or (for chat) template."""
    folder = sources.described(source, revision)
    if missing := [name for name in ("tokenizer.json", "tokenizer_config.json") if not (folder / name).exists()]:
        raise ValueError(f"source={source!r} has no {missing[0]}; use a model with a fast tokenizer")
    tokenizer = _tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = {name: tokenizer.token_to_id(_text(settings.get(f"{name}_token"))) for name in ("eos", "bos", "pad")}
    if ids["eos"] is None:
        raise ValueError(f"source={source!r} has a tokenizer without an eos_token; use one that can end a text")
    template = _template(folder, settings) if chat else None
    if chat and not template:
        raise ValueError(f"source={source!r} has no chat template; set chat to false")
    found = {name: ids["eos"] if token is None else token for name, token in ids.items()}
    symbols = tuple(tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size()))
    return ModelVocabulary(symbols, source=source, revision=revision, template=template, end=end, **found)


class ModelTokens(Value):
    """The tokenizer of a pretrained model.

    source, revision: the model (``PretrainedDecoder``). chat: whether a question becomes a user's message in the
    model's chat template. end: a text that ends an answer, such as a line break, for a model that would not stop;
    tokens after it are dropped. By default the model's end token ends an answer.
    """

    fields_added_later: ClassVar[frozenset[str]] = frozenset({"end"})
    source: str
    revision: str = ""
    chat: bool = True
    end: str = ""

    @model_validator(mode="before")
    @classmethod
    def _pinned(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("source"), str) and not values.get("revision"):
            return {**values, "revision": sources.pinned(values["source"])}
        return values

    @property
    def vocabulary(self) -> ModelVocabulary:
        return read(self.source, self.revision, self.chat, self.end)


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _text(token: Any) -> str:
    """Return the text of a special token in a tokenizer's settings, where it is a text or a mapping."""
    return token["content"] if isinstance(token, Mapping) else token or ""


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    found = file.read_text(encoding="utf-8") if file.exists() else settings.get("chat_template")
    if isinstance(found, list):  # several templates, by name
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """Return a compiled chat template. It is untrusted code, so it runs in a sandbox, set up as in transformers.

    The sandbox has no clock, because prompts that change with the date would make another task.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message: str) -> None:
        raise ValueError(f"the chat template refuses a question: {message}")

    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)
