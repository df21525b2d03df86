"""Keys of a store: POSIX-like relative paths that mean the same on every backend."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import StoreError

MANIFEST = "manifest.json"
RESERVED = ".cotrain~"
"""File names that start like this are a store's own (temporary files, locks): never keys, never listed."""


def problem(key: str) -> str | None:
    """What is wrong with a key, or None."""
    parts = key.split("/")
    if "" in parts:
        return "is empty" if not key else "is absolute" if key.startswith("/") else "has an empty part"
    if "." in parts or ".." in parts:
        return "has '.' or '..' in it"
    if "\\" in key or any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        return "has a backslash or a control character in it"
    if any(part.startswith(RESERVED) for part in parts):
        return f"uses the reserved name '{RESERVED}'"
    if len(key.encode(errors="surrogatepass")) > 900 or any(len(part.encode(errors="surrogatepass")) > 200 for part in parts):
        return "is longer than 900 bytes, or a part of it longer than 200"  # S3 takes 1024 in all, file systems 255 a name
    return None


def checked(uri: str, key: str) -> str:
    """The key itself. Raises StoreError unless it stays below the store and is portable."""
    if found := problem(key):
        raise StoreError.at(uri, f"the key {key!r} {found}", "use a relative path with '/' between its parts, such as 'models/digits'")
    return key


def below(prefix: str) -> str:
    """What the keys below `prefix` start with."""
    return f"{prefix}/" if prefix else ""


def seals_last(keys: list[str]) -> list[str]:
    """Keys in the order to write them: manifests last, so that what they list is there when they are."""
    return sorted(keys, key=lambda key: (key.rpartition("/")[2] == MANIFEST, key == MANIFEST, key))


def seals_first(keys: list[str]) -> list[str]:
    """Keys in the order to delete them: manifests first, so that what is half deleted is not taken for whole."""
    return seals_last(keys)[::-1]


def files_below(uri: str, folder: Path) -> list[str]:
    """Keys of all files below a folder that goes to a store, in the order to write them. Raises StoreError."""
    if not folder.is_dir():
        raise StoreError.at(str(folder), "there is no such folder to upload", "check the path")
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return seals_last([checked(uri, name) for name in names])
