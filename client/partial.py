"""Parts of blobs that are being fetched: they survive a crash, so that fetching goes on where it ended.

    partial/<digest>     76 bytes that say what is being fetched, then what came of it so far

offset 0: "QP"; 2: encoding, uint8; 3: zero; 4: bytes of the whole payload, uint64 little-endian; 12: digest of the
base, zeros if there is none; 44: digest of the payload; 76: the payload.

A part is not flushed to the disk as it grows: after a power cut the payload's digest tells whether all of it is there,
and if it is not it is fetched anew. After a kill everything is there that came.
"""

import struct
from collections.abc import Collection
from pathlib import Path

from client.disk import Disk, unwritable
from client.transport import Payload, Want
from quantization.blob import check_digest, content_digest
from quantization.delta import Encoding
from quantization.errors import DigestMismatchError, MalformedError

_HEADER = struct.Struct("<2sBBQ32s32s")
_MAGIC = b"QP"


class PartialBlobs:
    """The parts in one folder, of one fetch at a time."""

    def __init__(self, path: Path, disk: Disk) -> None:
        """Use the folder, which is made when there is a part to keep."""
        self.path = path
        self._disk = disk

    def want(self, digest: str) -> Want:
        """Return what to ask for to get the rest of a blob."""
        payload = self._payload(digest)
        if payload is None:
            return Want(digest)
        kept = self._kept_bytes(digest)
        return Want(digest, kept, payload.payload_digest) if 0 < kept <= payload.total_bytes else Want(digest)

    def begin(self, payload: Payload, offset_bytes: int) -> None:
        """Take up an answer.

        Raises:
            MalformedError: If it goes on with something else than what was kept.
            ConfigurationError: If the folder cannot be written.
        """
        if offset_bytes:
            if payload != self._payload(payload.digest) or offset_bytes != self._kept_bytes(payload.digest):
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
        path = self._path(payload.digest)
        try:
            self._disk.make_folder(self.path)
            self._disk.write(path, header)
        except OSError as error:
            raise unwritable(path, error) from error

    def append(self, digest: str, data: bytes) -> None:
        """Keep the next bytes.

        Raises:
            ConfigurationError: If the folder cannot be written.
        """
        path = self._path(digest)
        try:
            self._disk.append(path, data)
        except OSError as error:
            raise unwritable(path, error) from error

    def read(self, payload: Payload) -> bytes:
        """Return a payload that is complete, verified.

        Raises:
            DigestMismatchError: If it is damaged; it is removed, and will be fetched anew.
        """
        data = self._path(payload.digest).read_bytes()[_HEADER.size :]
        if content_digest(data) != payload.payload_digest:
            self.remove(payload.digest)
            raise DigestMismatchError(
                f"what was fetched of blob {payload.digest[:12]}... is damaged; fetch it again"
            )
        return data

    def remove(self, digest: str) -> None:
        """Forget a part."""
        self._disk.remove(self._path(digest))

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget the parts of all other blobs."""
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if path.name not in digests:
                self._disk.remove(path)

    def _payload(self, digest: str) -> Payload | None:
        """Return what a part is of; None where there is none that could be used."""
        try:
            with self._path(digest).open("rb") as file:
                header = file.read(_HEADER.size)
            magic, encoding, zero, total, base, payload_digest = _HEADER.unpack(header)
            if magic != _MAGIC or zero:
                return None
            base_digest = "" if encoding == Encoding.FULL else base.hex()
            return Payload(digest, Encoding(encoding), base_digest, total, payload_digest.hex())
        except (FileNotFoundError, struct.error, ValueError, MalformedError):
            return None

    def _kept_bytes(self, digest: str) -> int:
        return max(self._path(digest).stat().st_size - _HEADER.size, 0)

    def _path(self, digest: str) -> Path:
        return self.path / check_digest(digest)
