"""Arguments that all commands share: the store, and the form in which a command prints what it found."""

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
        """Return the index of the store. Raises StoreError if there is no store."""
        index = StoreIndex(Store(self.store))
        index.require_there()
        return index


@dataclass(frozen=True, kw_only=True)
class LookArgs(StoreArgs):
    """A store to look into, and the form of the answer."""

    json: bool = False
    """Print one JSON document instead of tables: whole ids, unrounded numbers, in bytes and seconds."""

    def print_facts(self, facts: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> None:
        """Print facts as JSON, with null for NaN and infinity, or as ``text`` writes them."""
        if self.json:
            facts = json.loads(json.dumps(facts), parse_constant=lambda _: None)
            print(json.dumps(facts, indent=2))
        else:
            print(text(facts))
