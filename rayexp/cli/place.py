"""Arguments that every command has: which store, and for those that look into it, in which form they say what they
found."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayexp.store.artifacts import Store
from rayexp.store.index import StoreIndex


@dataclass(frozen=True, kw_only=True)
class StoreArgs:
    """A store to look into."""

    store: str = "runs"
    """Folder or fsspec URL of the store."""

    def index(self) -> StoreIndex:
        """Return what is in it. Raises StoreError if there is no store."""
        index = StoreIndex(Store(self.store))
        index.require_there()
        return index


@dataclass(frozen=True, kw_only=True)
class LookArgs(StoreArgs):
    """A store to look into, and the form of what is found."""

    json: bool = False
    """Print one JSON document in place of tables: ids whole, numbers unrounded, in bytes and seconds."""

    def print_facts(self, facts: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> None:
        """Print facts as JSON or as ``text`` writes them. JSON has no NaN and no infinity: they are null."""
        if self.json:
            facts = json.loads(json.dumps(facts), parse_constant=lambda _: None)
            print(json.dumps(facts, indent=2))
        else:
            print(text(facts))
