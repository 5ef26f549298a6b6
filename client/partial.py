"""Parts of blobs that are being fetched: they survive a crash, so that fetching goes on where it ended.

    partial/<digest>.head    76 bytes that say what is being fetched
    partial/<digest>         what came of it so far

A head has at offset 0: "QP"; 2: encoding, uint8; 3: zero; 4: bytes of the whole payload, uint64 little-endian; 12:
digest of the base, zeros if there is none; 44: digest of the payload.

1. What came is appended at once, so after a kill everything is there but what came last.
2. A part is not flushed to the disk as it grows. After a power cut something may be missing inside; then what it
   decodes to has another digest, and it is fetched anew.
3. There is no part without its head: the head is written when nothing of the part is there.
"""

import mmap
import struct
from collections.abc import Collection
from pathlib import Path

from client.disk import Disk, unwritable
from client.transport import Payload, Want
from quantization.blob import check_digest
from quantization.delta import Encoding
from quantization.errors import MalformedError

PARTIAL = "partial"
"""The folder in a state folder."""

_HEADER = struct.Struct("<2sBBQ32s32s")
_MAGIC = b"QP"
_HEAD = ".head"


class PartialBlobs:
    """The parts in one folder, of one fetch at a time."""

    def __init__(self, path: Path, disk: Disk) -> None:
        """Use the folder, which is made when there is a part to keep."""
        self.path = path
        self._disk = disk
        self._begun = "", path  # name and file of the answer that was taken up last

    def want(self, digest: str) -> Want:
        """Return what to ask for to get the rest of a blob."""
        payload = self._payload(digest)
        if payload is None:
            return Want(digest)
        kept = self.size_bytes(digest)
        return Want(digest, kept, payload.payload_digest) if 0 < kept <= payload.total_bytes else Want(digest)

    def begin(self, payload: Payload, offset_bytes: int) -> None:
        """Take up an answer.

        Raises:
            MalformedError: If it goes on with something else than what was kept.
            ConfigurationError: If the folder cannot be written.
        """
        path = self.file(payload.digest)
        self._begun = payload.digest, path
        if offset_bytes:
            if payload != self._payload(payload.digest) or offset_bytes != self.size_bytes(payload.digest):
                raise MalformedError(
                    f"answer for blob {payload.digest[:12]} that goes on with something else"
                )
            return
        header = _HEADER.pack(
            _MAGIC,
            payload.encoding,
            0,
            payload.total_bytes,
            bytes.fromhex(payload.base_digest or "0" * 64),
            bytes.fromhex(payload.payload_digest),
        )
        try:
            self._disk.make_folder(self.path)
            self._disk.remove(path)
            self._disk.write(_head(path), header)
        except OSError as error:
            raise unwritable(path, error) from error

    def append(self, digest: str, data: bytes | memoryview) -> None:
        """Keep the next bytes of what was begun last.

        Raises:
            ConfigurationError: If the folder cannot be written.
        """
        begun, path = self._begun
        if begun != digest:
            path = self.file(digest)
        try:
            self._disk.append(path, data)
        except OSError as error:
            raise unwritable(path, error) from error

    def view(self, digest: str) -> memoryview:
        """Return what came, at least a byte, as it is on the disk: no copy is made of it."""
        with self.file(digest).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def remove(self, digest: str) -> None:
        """Forget a part."""
        path = self.file(digest)
        self._disk.remove(path)
        self._disk.remove(_head(path))

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget the parts of all other blobs."""
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if path.name.removesuffix(_HEAD) not in digests:
                self._disk.remove(path)

    def _payload(self, digest: str) -> Payload | None:
        """Return what a part is of; None where there is none that could be used."""
        try:
            with _head(self.file(digest)).open("rb") as file:
                header = file.read(_HEADER.size + 1)
            magic, encoding, zero, total, base, payload_digest = _HEADER.unpack(header)
            if magic != _MAGIC or zero:
                return None
            base_digest = "" if encoding == Encoding.FULL else base.hex()
            return Payload(digest, Encoding(encoding), base_digest, total, payload_digest.hex())
        except (FileNotFoundError, struct.error, ValueError, MalformedError):
            return None

    def size_bytes(self, digest: str) -> int:
        """Return how much came of a blob."""
        try:
            return self.file(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def file(self, digest: str) -> Path:
        """Return the file that holds what came of a blob."""
        return self.path / check_digest(digest)


def _head(path: Path) -> Path:
    return path.with_name(path.name + _HEAD)
