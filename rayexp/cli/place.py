"""What every command asks for: which store, and which stage in it."""

from dataclasses import dataclass

from rayexp.store.artifacts import Store
from rayexp.store.index import Catalog


@dataclass(frozen=True, kw_only=True)
class Place:
    """A store to look into."""

    store: str = "runs"
    """Folder or fsspec URL of the store."""

    def catalog(self) -> Catalog:
        """What is in it. Raises StoreError if there is no store."""
        catalog = Catalog(Store(self.store))
        catalog.require_there()
        return catalog
