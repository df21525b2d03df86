"""Stores: where bytes live, opened by URI."""

from __future__ import annotations

from trainer import catalog
from trainer.errors import StoreError, one_of
from trainer.parts import Store


def open_store(uri: str) -> Store:
    """The store behind a path, `file://...` or `s3://bucket/prefix`.

    Raises:
        StoreError: for a scheme that is not in the catalogue, or a URI its store can't take.
    """
    scheme, separator, _ = uri.partition("://")
    scheme = scheme if separator else "file"
    if scheme not in catalog.CATALOG["store"]:
        raise StoreError.at("store", f"no store takes '{uri}'", one_of(scheme, catalog.CATALOG["store"]))
    return catalog.find("store", scheme)(uri)
