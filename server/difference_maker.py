"""What devices need to go from one artifact to another, made before they ask."""

from collections.abc import Iterator

from quantization.bundle import Part, is_bundled, parts_between
from quantization.manifest import Manifest
from server.candidate import load_manifest
from server.delta_store import DeltaStore
from server.folded import Blobs


class DifferenceMaker:
    """Makes the bundle between two manifests, or, where there is too much for one, differences of single contents."""

    def __init__(self, blobs: Blobs, deltas: DeltaStore) -> None:
        """Make them of the blobs of one store."""
        self._blobs = blobs
        self._deltas = deltas

    def is_made(self, base: str, target: str) -> bool:
        """Return whether nothing is left to make between two manifests, by their digests.

        Raises:
            NotFoundError: The blob store lacks a manifest.
            DigestMismatchError: One is damaged.
        """
        parts = self._parts(base, target)
        if is_bundled(parts):
            return self._deltas.holds_bundle(base, target)
        return all(self._deltas.holds(*pair) for pair in _pairs(parts))

    def make(self, base: str, target: str) -> None:
        """Make what is not made; it takes about 3 s for each MiB that differs.

        Raises:
            NotFoundError: The blob store lacks a manifest or a blob.
            DigestMismatchError: One is damaged.
        """
        parts = self._parts(base, target)
        if is_bundled(parts):
            self._deltas.bundle((base, self._manifest(base)), (target, self._manifest(target)))
            return
        for pair in _pairs(parts):
            self._deltas.deltas(*pair)

    def _parts(self, base: str, target: str) -> tuple[Part, ...]:
        return parts_between(self._manifest(base), self._manifest(target))

    def _manifest(self, digest: str) -> Manifest:
        return load_manifest(self._blobs, digest)


def _pairs(parts: tuple[Part, ...]) -> Iterator[tuple[str, str]]:
    """Yield base and target of each content that something stood in the place of."""
    for part in parts:
        if part.base_digest:
            yield part.base_digest, part.digest
