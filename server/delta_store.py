"""Differences between blobs, each computed once for the whole fleet and kept beside the blobs.

A record holds every difference between one pair of contents that pays, or the bundle between two manifests. It is named
by both digests:

    <root>/<first two digits of the target>/<target>-<base>
    <root>/<first two digits of the target>/<target>.bundle-<base>

    offset 0   32 bytes  SHA-256 of all that follows
    then, for every difference: its encoding (1 byte), the size of its payload (4, little-endian), the payload

A record that is damaged or half written has another SHA-256: it counts as absent, and is computed anew. Losing the
whole folder costs time and nothing else; so does a folder that cannot be written.

The records are bounded in bytes. Whoever has written a sixteenth of the bound looks at the whole folder, and removes
what was used longest ago until nine tenths are left; so the folder passes its bound by a sixteenth for each process
that shares it. A record that another process removes while it is wanted is absent, like any other.
"""

import contextlib
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import fsspec
import structlog
from fsspec.implementations.local import LocalFileSystem

from quantization.blob import check_digest, decode_blob_content
from quantization.bundle import is_bundled, make_bundle, parts_between
from quantization.delta import Delta, Encoding, make_deltas
from quantization.errors import ConfigurationError, NotFoundError
from quantization.manifest import Manifest
from server.blob_store import BlobStore
from server.stored_files import stored_files

_log = structlog.get_logger()

_DIGEST_BYTES = 32
_BUNDLE = ".bundle"  # behind the target in the name of a record
_ENTRY = struct.Struct("<BI")  # encoding, size of the payload
_DEFAULT_BYTES = 4 << 30
_LOOK_EVERY, _KEPT_SHARE = 1 / 16, 0.9  # of the bound: written before the folder is looked at, and left then

Deltas = tuple[Delta, ...]


class DeltaStore:
    """Differences between the blobs of one store; its methods block, and any thread may call them."""

    def __init__(self, blobs: BlobStore, url: str | Path, *, max_bytes: int = _DEFAULT_BYTES) -> None:
        """Open the store, creating its root where it is a folder.

        Args:
            blobs: Holds both ends of every difference.
            url: A folder, or a URL as fsspec reads it; not inside the blob store.
            max_bytes: Most that the records may take, more or less; see above.

        Raises:
            ConfigurationError: If no file system for the URL is installed, or the folder cannot be made.
        """
        self._blobs = blobs
        self._max_bytes = max_bytes
        # Written since the folder was looked at; what lies there now is unknown, so the first record has it looked at.
        self._unseen_bytes = max_bytes
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], Future[Deltas]] = {}
        try:
            self._files, self._root = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
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
        return self._once(pair, lambda: self._compute(base, target))

    def bundle(self, base: tuple[str, Manifest], target: tuple[str, Manifest]) -> bytes:
        """Return the bundle of what one manifest names and another does not, from the record or by making it now.

        It takes about 3 s for each MiB.

        Args:
            base: The manifest of which a device holds everything, and its digest.
            target: The one that it wants.

        Raises:
            NotFoundError: If there is nothing of the kind, or it is too large; or the blob store lacks a blob.
            DigestMismatchError: If a blob is damaged.
        """
        parts = parts_between(base[1], target[1])
        if not is_bundled(parts):
            raise NotFoundError(f"no bundle of {sum(part.size_bytes for part in parts)} bytes is made")

        def make() -> Deltas:
            data = make_bundle(parts, self._content, self._blobs.get)
            return (Delta(Encoding.BUNDLE, data),)

        return self._once((check_digest(base[0]), f"{check_digest(target[0])}{_BUNDLE}"), make)[0].payload

    def holds(self, base: str, target: str) -> bool:
        """Return whether the differences between two contents have been computed; False where nobody can say."""
        return self._has((check_digest(base), check_digest(target)))

    def holds_bundle(self, base: str, target: str) -> bool:
        """Return whether the bundle between two manifests, by their digests, has been made; False likewise."""
        return self._has((check_digest(base), f"{check_digest(target)}{_BUNDLE}"))

    def _has(self, pair: tuple[str, str]) -> bool:
        try:
            return bool(self._files.isfile(self._path(pair)))
        except Exception:  # noqa: BLE001 - each file system has errors of its own
            return False

    def _once(self, pair: tuple[str, str], compute: Callable[[], Deltas]) -> Deltas:
        """Return the record of a pair; whoever asks while it is computed waits for the result."""
        with self._lock:
            running = self._running.get(pair)
            if running is None:
                mine = self._running[pair] = Future()
        if running is not None:
            return running.result()
        try:
            record = self._read(pair)
            if record is None:
                record = compute()
                self._write(pair, record)
            mine.set_result(record)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._running[pair]
        return mine.result()

    def _compute(self, base: str, target: str) -> Deltas:
        stored = self._blobs.get(target)
        content = decode_blob_content(stored, target)
        return make_deltas(self._content(base), content, len(stored))

    def _content(self, digest: str) -> bytes:
        return decode_blob_content(self._blobs.get(digest), digest)

    def _read(self, pair: tuple[str, str]) -> Deltas | None:
        """Return the record; None if there is none, or it is damaged."""
        try:
            data: bytes = self._files.cat_file(self._path(pair))
        except Exception:  # noqa: BLE001 - each file system has errors of its own; it is computed anew
            return None
        self._mark_used(self._path(pair))
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return _decode(body) if hashlib.sha256(body).digest() == digest else None

    def _write(self, pair: tuple[str, str], deltas: Deltas) -> None:
        """Keep a record; where that is not possible now, such as on a full disk, devices are served all the same."""
        body = b"".join(_ENTRY.pack(d.encoding, len(d.payload)) + d.payload for d in deltas)
        path = self._path(pair)
        try:
            if isinstance(self._files, LocalFileSystem):
                self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._files.pipe_file(path, hashlib.sha256(body).digest() + body)
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            _log.warning("delta_not_kept", store=self._root, record=path.rsplit("/", 1)[1], error=str(error))
            return
        with self._lock:
            self._unseen_bytes += len(body)
            is_due = self._unseen_bytes > self._max_bytes * _LOOK_EVERY
            if is_due:
                self._unseen_bytes = 0
        if is_due:
            self._remove_unused()

    def _mark_used(self, path: str) -> None:
        """Say that a record is still wanted; an object store knows only when it was written."""
        if isinstance(self._files, LocalFileSystem):
            with contextlib.suppress(OSError):
                os.utime(path)

    def _remove_unused(self) -> None:
        """Remove the records that were used longest ago, if there are too many; what goes wrong is left for later."""
        try:
            records = sorted(stored_files(self._files, self._root), key=lambda r: r.changed_at_seconds or 0.0)
            size_bytes, removed = sum(record.size_bytes for record in records), 0
            if size_bytes <= self._max_bytes:
                return
            for record in records:
                if size_bytes <= self._max_bytes * _KEPT_SHARE:
                    break
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    self._files.rm_file(record.path)
                size_bytes, removed = size_bytes - record.size_bytes, removed + 1
            _log.info("deltas_removed", store=self._root, records=removed, kept_bytes=size_bytes)
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            _log.warning("deltas_not_removed", store=self._root, error=str(error))

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
