"""What a device believes of its targets: only what The Update Framework's signed metadata says.

The rules (specification 1.0, section 5, by python-tuf's own checks):

1. Trust starts from a root that came with the device. A newer root is signed by the keys of the one before it and by
   its own, one version after another.
2. What was once verified is kept, and nothing older is taken: no version of timestamp, snapshot or targets goes back.
   What has expired is refused, so that nobody can keep a device from learning of something newer for long.
3. Timestamp names the snapshot by digest, snapshot names the targets by version: parts of different times do not mix.
4. Every file is bounded before it is read, whoever sends it; a signed manifest beyond the bound is refused too.
5. A target is looked up under its full name, model, class and version, and its version never goes back.

Bytes are handed in by a function; nothing here knows a network. Nothing reads a clock: the time is passed in.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import TargetFile
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from client.disk import Disk, replace_file
from quantization.errors import (
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    StaleVersionError,
    UpdateRejectedError,
)
from quantization.manifest import MAX_MANIFEST_BYTES
from quantization.target_name import TargetName

_Value = TypeVar("_Value")

MAX_BYTES = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""Greatest file of each role, as python-tuf's client has them."""

MAX_ROOT_ROTATIONS = 256
"""Most new roots that are taken at once."""

FetchMetadata = Callable[[str, int], Iterable[bytes]]
"""From a role and a version, 0 for the newest, to the chunks of its file.

Raises NotFoundError where there is none.
"""


class MetadataFiles(Protocol):
    """Where verified files are kept, one for each of the four roles."""

    def read(self, role: str) -> bytes | None:
        """Return the file of a role; None where there is none."""
        ...

    def write(self, role: str, data: bytes) -> None:
        """Keep the file of a role, for good when this returns."""
        ...


class MetadataFolder:
    """The files in a folder: `<role>.json`."""

    def __init__(self, path: Path, disk: Disk) -> None:
        disk.make_folder(path)
        self._path = path
        self._disk = disk

    def read(self, role: str) -> bytes | None:
        """Return the file of a role; None where there is none, or where it is larger than it can be."""
        try:
            with self._file(role).open("rb") as file:
                data = file.read(MAX_BYTES[role] + 1)
        except FileNotFoundError:
            return None
        return data if len(data) <= MAX_BYTES[role] else None

    def write(self, role: str, data: bytes) -> None:
        """Keep the file of a role.

        Raises:
            ConfigurationError: If it cannot be written.
        """
        replace_file(self._disk, self._file(role), data)

    def _file(self, role: str) -> Path:
        if role not in MAX_BYTES:
            raise MalformedError(f"no role {role[:80]!r} of metadata")
        return self._path / f"{role}.json"


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """What is signed of one target.

    Attributes:
        name: Model, class and version.
        digest: SHA-256 of the manifest, hex.
        size_bytes: Its length.
    """

    name: TargetName
    digest: str
    size_bytes: int


class TrustedMetadata:
    """The signed metadata that a device trusts; `refresh` brings it up to date."""

    def __init__(self, files: MetadataFiles, *, first_root: bytes) -> None:
        """Open what is kept.

        Args:
            files: Where verified files are kept.
            first_root: The root that came with the device; what is kept follows it.
        """
        self._files = files
        self._first_root = first_root
        self._targets: dict[str, TargetFile] | None = None

    def refresh(self, fetch: FetchMetadata, *, now_seconds: float) -> None:
        """Fetch and verify what is newer; what is verified is kept at once, whatever comes after it.

        Args:
            fetch: Where bytes come from; they are not trusted.
            now_seconds: Seconds since 1970 (UTC).

        Raises:
            StaleVersionError: Something older than what is kept was sent.
            DigestMismatchError: Something was sent that another file does not name.
            UpdateRejectedError: Anything else that is not trusted: signatures, expiry, size, form.
        """
        self._targets = None
        trusted = self._opened()
        trusted.reference_time = datetime.fromtimestamp(int(now_seconds), UTC)
        self._refresh_root(trusted, fetch)
        self._refresh_timestamp(trusted, fetch)
        self._refresh_snapshot(trusted, fetch)
        self._refresh_targets(trusted, fetch)
        self._targets = dict(trusted.targets.targets)

    def manifest_of(self, name: TargetName, *, least_version: int) -> SignedManifest:
        """Return what is signed of a target.

        Args:
            name: Which one; the server says which version this device should have, and is not trusted to.
            least_version: The greatest version that the device has had; a lower one is refused.

        Raises:
            StaleVersionError: The version is lower.
            UpdateRejectedError: It is not signed, or is larger than a manifest may be, or `refresh` has not
                succeeded.
        """
        if name.version < least_version:
            raise StaleVersionError(
                f"{name} is older than version {least_version}, which this device has had"
            )
        if self._targets is None:
            raise UpdateRejectedError("signed metadata was not refreshed")
        file = self._targets.get(str(name))
        if file is None:
            raise UpdateRejectedError(f"{name} is not among the signed targets")
        if not 0 < file.length <= MAX_MANIFEST_BYTES:
            raise UpdateRejectedError(
                f"the manifest of {name} has {file.length} bytes; 1 to {MAX_MANIFEST_BYTES} are allowed"
            )
        if "sha256" not in file.hashes:
            raise UpdateRejectedError(f"{name} is signed without a SHA-256")
        return SignedManifest(name, file.hashes["sha256"], file.length)

    def check_manifest(self, signed: SignedManifest, data: bytes) -> None:
        """Refuse bytes that are not the signed manifest.

        Raises:
            DigestMismatchError: They are not.
        """
        file = TargetFile(signed.size_bytes, {"sha256": signed.digest}, str(signed.name))
        _checked(str(signed.name), lambda: file.verify_length_and_hashes(data))

    def _opened(self) -> TrustedMetadataSet:
        """Return the kept root's trust; the first root's, where what is kept is damaged."""
        kept = self._files.read("root")
        if kept is not None:
            with contextlib.suppress(RepositoryError, ValueError, RecursionError):
                return TrustedMetadataSet(kept, EnvelopeType.METADATA)
        return _checked("root", lambda: TrustedMetadataSet(self._first_root, EnvelopeType.METADATA))

    def _refresh_root(self, trusted: TrustedMetadataSet, fetch: FetchMetadata) -> None:
        for _ in range(MAX_ROOT_ROTATIONS):
            version = trusted.root.version + 1
            try:
                data = _read(fetch("root", version), MAX_BYTES["root"], f"root {version}")
            except NotFoundError:
                return
            _checked("root", partial(trusted.update_root, data))
            self._files.write("root", data)
        raise UpdateRejectedError(f"more than {MAX_ROOT_ROTATIONS} new roots at once")

    def _refresh_timestamp(self, trusted: TrustedMetadataSet, fetch: FetchMetadata) -> None:
        kept = self._files.read("timestamp")
        if kept is not None:
            _tolerate(lambda: trusted.update_timestamp(kept))
        data = _read(fetch("timestamp", 0), MAX_BYTES["timestamp"], "timestamp")
        try:
            _checked("timestamp", lambda: trusted.update_timestamp(data))
        except _UnchangedError:
            return
        self._files.write("timestamp", data)

    def _refresh_snapshot(self, trusted: TrustedMetadataSet, fetch: FetchMetadata) -> None:
        kept = self._files.read("snapshot")
        if kept is not None and _tolerate(lambda: trusted.update_snapshot(kept, trusted=True)):
            return
        meta = trusted.timestamp.snapshot_meta
        limit = min(meta.length or MAX_BYTES["snapshot"], MAX_BYTES["snapshot"])
        data = _read(fetch("snapshot", meta.version), limit, "snapshot")
        _checked("snapshot", lambda: trusted.update_snapshot(data))
        self._files.write("snapshot", data)

    def _refresh_targets(self, trusted: TrustedMetadataSet, fetch: FetchMetadata) -> None:
        kept = self._files.read("targets")
        if kept is not None and _tolerate(lambda: trusted.update_targets(kept)):
            return
        meta = trusted.snapshot.meta.get("targets.json")
        if meta is None:
            raise UpdateRejectedError("snapshot does not name targets")
        limit = min(meta.length or MAX_BYTES["targets"], MAX_BYTES["targets"])
        data = _read(fetch("targets", meta.version), limit, "targets")
        _checked("targets", lambda: trusted.update_targets(data))
        self._files.write("targets", data)


class _UnchangedError(Exception):
    """What was sent is what is kept."""


def _read(chunks: Iterable[bytes], limit: int, what: str) -> bytes:
    """Return the chunks as one file of `limit` bytes at most; what never ends is left in the middle."""
    data = bytearray()
    for chunk in chunks:
        if len(data) + len(chunk) > limit:
            raise UpdateRejectedError(f"{what} has more than {limit} bytes")
        data += chunk
    return bytes(data)


def _checked(what: str, check: Callable[[], _Value]) -> _Value:
    """Return what a check of python-tuf returns, its refusals as this project's errors."""
    try:
        return check()
    except EqualVersionNumberError as error:
        raise _UnchangedError from error
    except BadVersionNumberError as error:
        raise StaleVersionError(f"{what} is refused: {error}") from error
    except LengthOrHashMismatchError as error:
        raise DigestMismatchError(f"{what} is refused: {error}") from error
    except (RepositoryError, ValueError, RecursionError) as error:
        raise UpdateRejectedError(f"{what} is refused: {error}") from error


def _tolerate(check: Callable[[], object]) -> bool:
    """Return whether a kept file is still good; what is not is fetched anew, and still bounds versions."""
    try:
        check()
    except (RepositoryError, ValueError, RecursionError):
        return False
    return True
