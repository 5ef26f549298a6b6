"""Verifies blobs while the next ones come: decoding and SHA-256 run beside the network, one blob behind it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from client.transport import Payload
from quantization.blob import check_blob_content, content_digest, content_size_bytes
from quantization.errors import DigestMismatchError, MalformedError

LARGE_BYTES = 256 << 10
"""From here, handing a blob to another thread costs less than waiting for it."""


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

    def finish(self) -> None:
        """Wait for the blob that is being checked."""
        if self._pending is not None:
            (future, finish), self._pending = self._pending, None
            finish(future.exception())


@contextmanager
def verifier() -> Iterator[Verifier]:
    """Yield a verifier; whatever was checked is finished when the block ends, however it ends."""
    with ThreadPoolExecutor(
        1, "quantfleet-verify"
    ) as executor:  # its thread starts with the first large blob
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
