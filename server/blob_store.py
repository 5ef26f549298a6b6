"""Where the server keeps blobs: a folder by default, or any file system that fsspec can reach.

Blobs are named by the SHA-256 of their decoded content, so they are written once, never change, and are
verified whenever they are read.
"""

import os
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from quantization.blob import check_digest, check_stored, decode_blob_content
from quantization.errors import (
    ConfigurationError,
    DigestMismatchError,
    NotFoundError,
    UnreachableError,
)


class BlobStore:
    """Content-addressed stored blobs under one root, in 256 folders by the first two digits of the digest."""

    def __init__(self, url: str | Path) -> None:
        """Open the store, creating its root where it is a folder.

        Args:
            url: A folder, or a URL such as "s3://bucket/blobs" or "memory://blobs".

        Raises:
            ConfigurationError: If no file system for the URL is installed, or the folder cannot be made.
        """
        try:
            self._files, self._root = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
            self._is_folder = isinstance(self._files, LocalFileSystem)
            if self._is_folder:
                self._files.makedirs(self._root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigurationError(f"blob store {url} cannot be opened: {error}") from error

    def put(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes, once they are verified; a blob that is held undamaged stays as it is.

        Raises:
            MalformedError: If they are not a blob.
            DigestMismatchError: If they are another blob.
            ConfigurationError: If the store cannot be written.
            UnreachableError: If it cannot be reached now.
        """
        path = self._path(digest)
        decode_blob_content(stored, digest)
        if self._holds_undamaged(digest):
            return
        try:
            if self._is_folder:
                _write_file(Path(path), stored)
            else:
                self._files.pipe_file(path, stored)  # an object store shows an object when it is whole
        except OSError as error:
            raise ConfigurationError(f"blob store {self._root} cannot be written: {error}") from error
        except Exception as error:  # each file system has errors of its own
            raise UnreachableError(f"blob store {self._root} cannot be written now: {error}") from error

    def get(self, digest: str) -> bytes:
        """Return a blob's stored bytes, verified.

        Raises:
            NotFoundError: If it is not held.
            DigestMismatchError: If it is damaged.
            UnreachableError: If the store cannot be read now.
        """
        path = self._path(digest)
        try:
            stored: bytes = self._files.cat_file(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"blob {digest} is not in {self._root}") from error
        except Exception as error:  # each file system has errors of its own
            raise UnreachableError(f"blob store {self._root} cannot be read now: {error}") from error
        check_stored(stored, digest, self._root)
        return stored

    def has(self, digest: str) -> bool:
        """Return whether the blob is held."""
        return bool(self._files.isfile(self._path(digest)))

    def digests(self) -> frozenset[str]:
        """Return the names of all blobs that are held."""
        names = (path.rsplit("/", 1)[-1] for path in self._files.find(self._root))
        return frozenset(name for name in names if not name.endswith(".tmp"))

    def size_bytes(self) -> int:
        """Return the stored bytes of all blobs; lists the whole store."""
        entries = self._files.find(self._root, detail=True).values()
        return sum(int(entry.get("size") or 0) for entry in entries)

    def _holds_undamaged(self, digest: str) -> bool:
        try:
            self.get(digest)
        except (NotFoundError, DigestMismatchError):
            return False
        return True

    def _path(self, digest: str) -> str:
        return f"{self._root}/{check_digest(digest)[:2]}/{digest}"


def _write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, whoever else writes the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
