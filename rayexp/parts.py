"""Parts of a stage, such as tasks and rewards, which may be a user's own classes.

The ``kind`` of a part of this project is a word, and its class is found in its package. The kind of a user's part is
its import path, ``module:Class``, and its class states a ``version``. Both are values with settings, and enter the ids
of stages in the same way.

The text in a store is not trusted. With ``STORED`` as pydantic's context, parsing it never imports a module: a part
whose class is not imported yet becomes an ``UnreadPart``, which only holds its settings.
"""

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, SerializeAsAny, ValidationInfo

from rayexp.config import Value
from rayexp.errors import located, none_of, not_among

T = TypeVar("T", bound="Part")

PACKAGE = __name__.partition(".")[0]
STORED = {"stored": True}
#: The entry for users' classes in a list of kinds.
OWN_CLASS = "module:Class of your own"
VERSION = "version: Literal[1] = 1"


class Part(Value):
    """A part of a stage: settings, and a ``kind`` that names its class.

    A class of this project states its kind. The kind of any other class is its import path.
    """

    if TYPE_CHECKING:
        kind: str = ""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = inspect.get_annotations(cls)
        if "kind" not in own and cls.__module__.partition(".")[0] != PACKAGE:
            cls.kind = import_path(cls)
            cls.__annotations__ = {"kind": Literal[cls.kind], **own}


class UnreadPart(Value):
    """The settings of a part of a stored stage whose class is not imported."""

    model_config = ConfigDict(extra="allow")
    kind: str

    @property
    def label(self) -> str:
        return self.kind


def import_path(value: Any) -> str:
    """Return the import path of a class or function: ``module:name``."""
    return f"{value.__module__}:{value.__qualname__}"


def imported(path: str, field: str) -> Any:
    """Return the object at an import path. Raises ValueError, which names ``field``, if there is none."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module_name}.".startswith(f"{error.name}."):  # imported by the module
            raise ValueError(f"{field}={path!r} cannot be imported: {located(error)}") from error
        places = f"in {os.getcwd()} or among the installed packages"
        raise ValueError(f"{field}={path!r} cannot be imported: no module {error.name} is {places}") from error
    except Exception as error:
        raise ValueError(f"{field}={path!r} cannot be imported: {located(error)}") from error
    if not hasattr(module, name):
        here = [other for other, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        raise ValueError(f"{field}={path!r} cannot be imported: {name!r} {none_of(name, here)}")
    return getattr(module, name)


def part_of(base: type[T], kinds: Mapping[str, type[T]]) -> Any:
    """Return the type of a field that holds a part: an instance of one of ``kinds``, or of a user's subclass of
    ``base``."""

    def part(value: Any, info: ValidationInfo) -> Any:
        field = info.field_name or base.__name__.lower()
        if isinstance(value, base):
            _require_class(type(value), kinds, field)
            return value
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if not isinstance(kind, str):
            raise ValueError(f"{field} has no kind; give one of {', '.join(kinds)}, or {OWN_CLASS}")
        if info.context is STORED and is_own(kind) and not _at_hand(kind):
            return UnreadPart.model_validate(value)
        found = _named(kind, base, kinds, field)
        _require_class(found, kinds, field)
        return found.model_validate_json(json.dumps(value)) if info.mode == "json" else found.model_validate(value)

    return Annotated[SerializeAsAny[base], PlainValidator(part)]


def own_parts(values: Iterable[BaseModel]) -> Iterator[Any]:
    """Yield the parts of users' classes, imported or not, in some values and in all values inside them. A shared value,
    such as a stage that others start from, is visited once."""
    left, seen = list(values), set[int]()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_own(getattr(value, "kind", "")):
            yield value
        for name in type(value).model_fields:
            inner = getattr(value, name)
            left += [each for each in (inner if isinstance(inner, tuple) else (inner,)) if isinstance(each, BaseModel)]


def unread_parts(value: BaseModel) -> list[UnreadPart]:
    """Return the parts in a value whose classes are not imported."""
    return [part for part in own_parts([value]) if isinstance(part, UnreadPart)]


def own_modules(values: Iterable[BaseModel]) -> tuple[str, ...]:
    """Return the names of the top-level modules of the users' classes in some values."""
    return tuple(sorted({re.split("[.:]", part.kind)[0] for part in own_parts(values)}))


def is_own(kind: str) -> bool:
    """Return whether a name is an import path, and so names a user's class or function."""
    return bool(re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", kind))


def _at_hand(kind: str) -> bool:
    module, _, name = kind.partition(":")
    return hasattr(sys.modules.get(module), name)


def _named(kind: str, base: type[T], kinds: Mapping[str, type[T]], field: str) -> type[T]:
    if is_own(kind):
        found = imported(kind, field)
        if not (isinstance(found, type) and issubclass(found, base)):
            name = base.__name__
            raise ValueError(f"{field}={kind!r} is not a {name}; derive the class from {PACKAGE}.{name}")
        return found
    if kind not in kinds:
        raise ValueError(not_among(f"{field}.kind", kind, [*kinds, OWN_CLASS]))
    return kinds[kind]


def _require_class(found: type[Part], kinds: Mapping[str, type[Part]], field: str) -> None:
    """Raise ValueError unless a class is one of ``kinds``, or a user's that is importable, concrete and versioned."""
    if found in kinds.values():
        return
    path = import_path(found)
    if found.__module__ == "__main__" or "<locals>" in path:
        raise ValueError(f"{field}={path} cannot be imported by other processes; move the class into a module")
    if "." in found.__qualname__:
        raise ValueError(f"{field}={path} is inside another class; move it to the top of its module")
    if found.model_fields["kind"].default != path:
        raise ValueError(f"{field}={path} sets a kind; remove it, because the kind of your class is its import path")
    if abstract := inspect.isabstract(found) and sorted(found.__abstractmethods__):
        raise ValueError(f"{field}={path} does not define {', '.join(abstract)}")
    stated = found.model_fields.get("version")
    if stated is None or type(stated.default) is not int:
        raise ValueError(
            f"{field}={path} states no version; add `{VERSION}`, and raise it when equal settings would give other "
            "results"
        )
