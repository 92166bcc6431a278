"""Arguments that every command has: which store, and which stage in it."""

from dataclasses import dataclass

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
