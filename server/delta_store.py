"""Differences between blobs, each computed once for the whole fleet and kept beside the blobs.

A record holds every difference between one pair of contents that pays. It is named by both digests:

    <root>/<first two digits of the target>/<target>-<base>

    offset 0   32 bytes  SHA-256 of all that follows
    then, for every difference: its encoding (1 byte), the size of its payload (4, little-endian), the payload

A record that is damaged or half written has another SHA-256: it counts as absent, and is computed anew. Losing the
whole folder costs time and nothing else.
"""

import hashlib
import struct
import threading
from concurrent.futures import Future
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from quantization.blob import check_digest, decode_blob_content
from quantization.delta import Delta, Encoding, make_deltas
from quantization.errors import ConfigurationError
from server.blob_store import BlobStore

_DIGEST_BYTES = 32
_ENTRY = struct.Struct("<BI")  # encoding, size of the payload

Deltas = tuple[Delta, ...]


class DeltaStore:
    """Differences between the blobs of one store; its methods block, and any thread may call them."""

    def __init__(self, blobs: BlobStore, url: str | Path) -> None:
        """Open the store, creating its root where it is a folder.

        Args:
            blobs: Holds both ends of every difference.
            url: A folder, or a URL as fsspec reads it; not inside the blob store.

        Raises:
            ConfigurationError: If no file system for the URL is installed, or the folder cannot be made.
        """
        self._blobs = blobs
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], Future[Deltas]] = {}
        try:
            self._files, self._root = fsspec.core.url_to_fs(str(url))
            if isinstance(self._files, LocalFileSystem):
                self._files.makedirs(self._root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigurationError(f"delta store {url} cannot be opened: {error}") from error

    def deltas(self, base: str, target: str) -> Deltas:
        """Return the differences that pay, from the record or by computing them now.

        Whoever asks for a pair that is being computed waits for the result. 4 MiB of weights take about 10 s.

        Args:
            base: Digest of the content that the device holds.
            target: Digest of the content that it wants.

        Raises:
            NotFoundError: If the blob store lacks one of the two.
            DigestMismatchError: If one of the two is damaged.
        """
        pair = (check_digest(base), check_digest(target))
        with self._lock:
            running = self._running.get(pair)
            if running is None:
                mine = self._running[pair] = Future()
        if running is not None:
            return running.result()
        try:
            record = self._read(pair)
            mine.set_result(self._compute(pair) if record is None else record)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._running[pair]
        return mine.result()

    def _compute(self, pair: tuple[str, str]) -> Deltas:
        base, target = pair
        stored = self._blobs.get(target)
        content = decode_blob_content(stored, target)
        deltas = make_deltas(decode_blob_content(self._blobs.get(base), base), content, len(stored))
        self._write(pair, deltas)
        return deltas

    def _read(self, pair: tuple[str, str]) -> Deltas | None:
        """Return the record; None if there is none, or it is damaged."""
        try:
            data: bytes = self._files.cat_file(self._path(pair))
        except OSError:
            return None
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return _decode(body) if hashlib.sha256(body).digest() == digest else None

    def _write(self, pair: tuple[str, str], deltas: Deltas) -> None:
        body = b"".join(_ENTRY.pack(d.encoding, len(d.payload)) + d.payload for d in deltas)
        path = self._path(pair)
        try:
            if isinstance(self._files, LocalFileSystem):
                self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._files.pipe_file(path, hashlib.sha256(body).digest() + body)
        except OSError as error:
            raise ConfigurationError(f"delta store {self._root} cannot be written: {error}") from error

    def _path(self, pair: tuple[str, str]) -> str:
        base, target = pair
        return f"{self._root}/{target[:2]}/{target}-{base}"


def _decode(body: bytes) -> Deltas:
    deltas, place = [], 0
    while place < len(body):
        encoding, size = _ENTRY.unpack_from(body, place)
        place += _ENTRY.size
        deltas.append(Delta(Encoding(encoding), body[place : place + size]))
        place += size
    return tuple(deltas)
