"""Signing targets where the offline keys are, which need not be where the server is.

The server says which names a change needs (`server.signed_publishing`) and hands out its newest files of targets and
root; `sign_targets` makes the next file of targets from them, and `SignedMetadata.accept_targets` puts it in place,
once it is verified. Names of one model and class are replaced as a whole, all others stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer

from quantization.blob import check_digest
from quantization.errors import ConfigurationError, MalformedError
from quantization.manifest import MAX_MANIFEST_BYTES
from quantization.target_name import TargetName
from server.keys import KeyFolder

MAX_TARGETS_BYTES = 5_000_000
"""Largest file of targets; no device reads a larger one."""
TARGETS_DAYS = 180.0
"""For how long a file of targets is good."""

_Signed = TypeVar("_Signed", bound=Signed)


@dataclass(frozen=True, slots=True)
class SignedContent:
    """What is signed of a manifest.

    Attributes:
        size_bytes: Of the manifest.
        digest: Its SHA-256, hex.
    """

    size_bytes: int
    digest: str

    def __post_init__(self) -> None:
        """Refuse what no manifest can be."""
        check_digest(self.digest)
        if not 0 < self.size_bytes <= MAX_MANIFEST_BYTES:
            raise MalformedError(
                f"a manifest of {self.size_bytes} bytes; 1 to {MAX_MANIFEST_BYTES} are allowed"
            )


SignedNames = Mapping[TargetName, SignedContent]
"""Names of one model and class, and what each is."""


def sign_targets(
    targets: bytes,
    root: bytes,
    names: SignedNames,
    *,
    offline: KeyFolder,
    now_seconds: float,
    lifetime_days: float = TARGETS_DAYS,
) -> bytes:
    """Return the next file of targets, in which one model and class has these names and no others.

    Args:
        targets: The newest file of targets.
        root: The newest file of root; says which keys sign.
        names: Of one model and class, at least one.
        offline: Has the keys of targets.
        now_seconds: Seconds since 1970 (UTC).
        lifetime_days: For how long the file is good.

    Raises:
        ConfigurationError: If one of the files is none, or the keys do not make a valid signature.
        NotFoundError: If a key is not there.
        MalformedError: If the names are not of one model and class.
    """
    trusted, signed = _opened(root, Root), _opened(targets, Targets)
    classes = {(name.model_digest, name.device_class) for name in names}
    if len(classes) != 1:
        raise MalformedError(f"names of {len(classes)} models and classes; they must be of one")
    kept = {path: file for path, file in signed.targets.items() if _class_of(path) not in classes}
    new = {
        str(name): TargetFile(content.size_bytes, {"sha256": content.digest}, str(name))
        for name, content in sorted(names.items(), key=lambda item: item[0].version)
    }
    signed.targets = {**kept, **new}
    signed.version += 1
    signed.expires = datetime.fromtimestamp(int(now_seconds), UTC) + timedelta(days=lifetime_days)
    metadata: Metadata[Any] = Metadata(signed)
    for key_id in sorted(trusted.roles["targets"].keyids):
        metadata.sign(offline.signer("targets", key_id), append=True)
    data = metadata.to_bytes(JSONSerializer(compact=True))
    checked_targets(data, trusted, now_seconds=now_seconds)
    return data


def checked_targets(data: bytes, root: Root, *, now_seconds: float) -> Targets:
    """Return a file of targets, once it is verified.

    Raises:
        ConfigurationError: It is damaged, too large, expired, delegates, or lacks signatures that root asks for.
    """
    if len(data) > MAX_TARGETS_BYTES:
        raise ConfigurationError(f"a file of targets of {len(data)} bytes; devices read {MAX_TARGETS_BYTES}")
    try:
        metadata = Metadata[Any].from_bytes(data)
        root.verify_delegate("targets", metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise ConfigurationError(f"the file of targets is refused: {error}") from error
    signed = metadata.signed
    if not isinstance(signed, Targets) or signed.delegations is not None:
        raise ConfigurationError("the file of targets is a file of another role, or delegates to one")
    if signed.is_expired(datetime.fromtimestamp(int(now_seconds), UTC)):
        raise ConfigurationError(f"the file of targets has expired at {signed.expires}; sign it anew")
    for name in signed.targets:
        TargetName.parse(name)
    return signed


def _opened(data: bytes, kind: type[_Signed]) -> _Signed:
    try:
        signed = Metadata[Any].from_bytes(data).signed
    except RepositoryError as error:
        raise ConfigurationError(f"a file of signed metadata is damaged: {error}") from error
    if not isinstance(signed, kind):
        raise ConfigurationError("a file of signed metadata is a file of another role")
    return signed


def _class_of(path: str) -> tuple[str, str]:
    name = TargetName.parse(path)
    return name.model_digest, name.device_class
