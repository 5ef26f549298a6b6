"""The content-addressed blobs of a device, in one folder.

    blobs/<digest>       stored blobs
    partial/<digest>     the part that was fetched so far of what will become one: see `client.partial`

What is read is verified; a blob that is damaged is removed and reported, so that it is fetched again.
"""

from pathlib import Path

from client.disk import TEMPORARY, Disk, replace_file, unwritable
from quantization.blob import check_blob_content, check_digest, check_stored
from quantization.errors import DigestMismatchError, NotFoundError


class BlobFolder:
    """Stored blobs by the digest of their decoded content; any number of processes may use one folder."""

    def __init__(self, path: Path, disk: Disk) -> None:
        """Use the folder, which is there.

        Args:
            path: Holds the blobs and nothing else.
            disk: Does whatever changes the folder.
        """
        self.path = path
        self._disk = disk

    def digests(self) -> frozenset[str]:
        """Return the names of the blobs that are held."""
        return frozenset(path.name for path in self.path.iterdir() if not path.name.endswith(TEMPORARY))

    def has(self, digest: str) -> bool:
        """Return whether the blob is held."""
        return self._path(digest).is_file()

    def size_bytes(self, digest: str) -> int:
        """Return what a blob takes on the disk; 0 where it is not held."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, digest: str) -> bytes:
        """Return a blob's stored bytes, verified.

        Raises:
            NotFoundError: If it is not held.
            DigestMismatchError: If it is damaged; it is removed, and held no longer.
        """
        path = self._path(digest)
        try:
            stored = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"blob {digest[:12]}... is not in {self.path}") from error
        try:
            check_stored(stored, digest, str(self.path))
        except DigestMismatchError as error:
            self.remove(digest)
            raise DigestMismatchError(f"{error}; it is removed, fetch it again") from error
        return stored

    def store(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes, once they are verified.

        Raises:
            MalformedError: If they are not a blob.
            DigestMismatchError: If they are another blob.
            ConfigurationError: If the folder cannot be written.
        """
        check_blob_content(stored, digest)
        self.keep_verified(digest, stored)

    def keep_verified(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes, which the caller has verified.

        Raises:
            ConfigurationError: If the folder cannot be written.
        """
        replace_file(self._disk, self._path(digest), stored)

    def adopt_verified(self, digest: str, path: Path) -> None:
        """Make a file a blob: it holds stored bytes, which the caller has verified, and is moved.

        Raises:
            ConfigurationError: If the folder cannot be written.
        """
        target = self._path(digest)
        try:
            self._disk.sync(path)
            self._disk.rename(path, target)
            self._disk.sync(target.parent)
        except OSError as error:
            raise unwritable(target, error) from error

    def remove(self, digest: str) -> None:
        """Hold a blob no longer; nothing happens if it is not held."""
        try:
            self._disk.remove(self._path(digest))
        except OSError:  # a folder that can only be read: what is damaged stays, and is refused again
            return

    def _path(self, digest: str) -> Path:
        return self.path / check_digest(digest)
