"""Verifies blobs while they come: what is stored as it is, piece by piece; the rest one blob behind the network.

Handing pieces to another thread for SHA-256 costs more than SHA-256, so the thread that receives takes it. Decoding
needs a whole blob, and takes long enough for a thread of its own.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from client.transport import Payload
from quantization.blob import (
    HEADER_BYTES,
    check_blob_content,
    content_digest,
    content_size_bytes,
    plain_size_bytes,
)
from quantization.errors import DigestMismatchError, MalformedError

LARGE_BYTES = 256 << 10
"""From here, handing a blob to another thread costs less than waiting for it."""


class ArrivingContent:
    """The digest of a blob's content, taken while the blob comes, where it is stored as it is."""

    def __init__(self, payload: Payload, size_bytes: int, *, is_exact: bool) -> None:
        """Look at a payload.

        Args:
            payload: Says what it is.
            size_bytes: What it decodes to.
            is_exact: Whether it does so exactly; else at most.
        """
        self._payload, self._size_bytes, self._is_exact = payload, size_bytes, is_exact
        self._header = b""
        self._declared_bytes: int | None = None
        self._sha256 = hashlib.sha256()

    def take(self, data: bytes | memoryview) -> None:
        """Take the next bytes, of a payload that starts with the first that are taken."""
        if len(self._header) < HEADER_BYTES:
            missing = HEADER_BYTES - len(self._header)
            self._header += data[:missing]
            self._declared_bytes = plain_size_bytes(self._header)
            data = data[missing:]
        if self._declared_bytes is not None:
            self._sha256.update(data)

    def is_right(self) -> bool:
        """Return whether all bytes came and are the blob; where it is encoded, no answer: `check_full` gives that."""
        declared, size = self._declared_bytes, self._size_bytes
        return (
            declared is not None
            and declared == self._payload.total_bytes - HEADER_BYTES
            and (declared == size or (declared < size and not self._is_exact))
            and self._sha256.hexdigest() == self._payload.digest
        )


Finish = Callable[[BaseException | None], None]
"""Keeps a blob that is verified, or forgets it and raises what was wrong with it."""


class Verifier:
    """Checks stored blobs, in their order; at most one is being checked at a time.

    What is to happen with a blob afterwards happens in the thread that uses the verifier, so that a device's disk is
    changed by one thread and in one order.
    """

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._pending: tuple[Future[None], Finish] | None = None

    def check(self, check: Callable[[], None], size_bytes: int, finish: Finish) -> None:
        """Check a blob, at once if it is small; the one before it is finished first.

        Args:
            check: Raises what is wrong with it.
            size_bytes: How much there is to check.
            finish: Called with that, or None.
        """
        self.finish()
        if size_bytes >= LARGE_BYTES:
            self._pending = self._executor.submit(check), finish
            return
        error: BaseException | None = None
        try:
            check()
        except Exception as found:  # noqa: BLE001 - `finish` raises it
            error = found
        finish(error)

    def passed(self, finish: Finish) -> None:
        """Keep a blob that is verified; the one before it is finished first."""
        self.finish()
        finish(None)

    def finish(self) -> None:
        """Wait for the blob that is being checked."""
        if self._pending is not None:
            (future, finish), self._pending = self._pending, None
            finish(future.exception())


@contextmanager
def verifier() -> Iterator[Verifier]:
    """Yield a verifier; whatever was checked is finished when the block ends, however it ends."""
    # Its thread starts with the first large blob.
    with ThreadPoolExecutor(1, "quantfleet-verify") as executor:
        made = Verifier(executor)
        try:
            yield made
        finally:
            made.finish()


def check_full(payload: Payload, stored: memoryview, size_bytes: int, *, is_exact: bool) -> None:
    """Refuse stored bytes that are not the blob, of which nothing is decoded that is larger than it may be.

    Raises:
        MalformedError: They are no blob, or one of another size.
        DigestMismatchError: They are another blob, or damaged.
    """
    with damage_told(payload, stored):
        declared = content_size_bytes(stored)
        if declared > size_bytes or (is_exact and declared != size_bytes):
            raise MalformedError(
                f"blob {payload.digest[:12]}... of {declared} decoded bytes where {size_bytes} are expected"
            )
        check_blob_content(stored, payload.digest)


@contextmanager
def damage_told(payload: Payload, received: memoryview) -> Iterator[None]:
    """Tell what was damaged on its way from what was never right: bytes that make no sense have another digest.

    The digest of the payload is looked at only then. What makes sense is judged by the digest of its content.

    Raises:
        DigestMismatchError: What came is not what the service said that it sends.
    """
    try:
        yield
    except MalformedError as error:
        if content_digest(received) == payload.payload_digest:
            raise
        raise DigestMismatchError(
            f"what was fetched of blob {payload.digest[:12]}... is damaged; fetch it again"
        ) from error
