"""The signed metadata that a server hands to devices: a repository of The Update Framework in a folder.

The rules (specification 1.0, https://theupdateframework.github.io/specification/latest/, by python-tuf):

1. Targets are manifests of artifacts, under the names of `quantization.target_name`; blobs are bound by the digests in
   the manifest. The way back is signed together with the way forth: a rollout that is taken back at night needs no
   offline key then.
2. A file is there before the one that names it, and appears whole (`server.metadata_folder`): a reader sees the
   repository before a change or after it.
3. Versions grow by one. A new root is signed by the old root's keys and its own.
4. `refresh` signs snapshot and timestamp anew before they expire, with online keys alone. It also ends what a process
   that died left half done: targets that no snapshot names yet, and files whose keys the newest root has replaced.

Nothing here reads a clock: times are passed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from quantization.errors import ConfigurationError, NotFoundError
from quantization.manifest import MAX_MANIFEST_BYTES
from quantization.target_name import TargetName
from server.keys import ROLES, KeyFolder
from server.metadata_folder import MetadataFolder
from server.target_signing import checked_targets

_Signed = TypeVar("_Signed", bound=Signed)

_COMPACT = JSONSerializer(compact=True)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how long what is signed is good, in days; a device refuses it afterwards.

    Attributes:
        root: Of root; renewed by hand.
        targets: Of targets; renewed whenever something is published.
        snapshot: Of snapshot.
        timestamp: Of timestamp: for how long a device can be kept from learning of something newer.
    """

    root: float = 365.0
    targets: float = 180.0
    snapshot: float = 7.0
    timestamp: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what expires at once."""
        if not all(0 < getattr(self, role) <= 3650 for role in ROLES):
            raise ConfigurationError(f"lifetimes must lie above 0 and within 3650 days, not {self}")


DEFAULT_LIFETIMES = Lifetimes()


class SignedMetadata:
    """The folder with the signed files; keys are handed in where they are needed."""

    def __init__(self, path: Path | str, lifetimes: Lifetimes = DEFAULT_LIFETIMES) -> None:
        self._folder = MetadataFolder(path)
        self._lifetimes = lifetimes

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def is_made(self) -> bool:
        """Whether there is a repository."""
        return self._folder.is_made

    def create(
        self,
        offline: KeyFolder,
        online: KeyFolder,
        *,
        now_seconds: float,
        root_keys: int = 1,
        targets_keys: int = 1,
    ) -> None:
        """Make new keys and the first version of every file.

        Args:
            offline: Gets the keys of root and targets; leave it on a machine that serves nothing.
            online: Gets those of snapshot and timestamp.
            now_seconds: Seconds since 1970 (UTC).
            root_keys: How many keys sign root, all of which are needed.
            targets_keys: Likewise, targets.

        Raises:
            ConfigurationError: If there is a repository already, or the folder cannot be written.
        """
        with self._folder.changing():
            self._create(offline, online, now_seconds, root_keys, targets_keys)

    def _create(
        self, offline: KeyFolder, online: KeyFolder, now_seconds: float, root_keys: int, targets_keys: int
    ) -> None:
        if self._folder.is_made:
            raise ConfigurationError(f"{self.path} holds a repository already; rotate its keys instead")
        if min(root_keys, targets_keys) < 1:
            raise ConfigurationError("root and targets need one key at least")
        root = Root(consistent_snapshot=True)
        numbers = {"root": root_keys, "targets": targets_keys, "snapshot": 1, "timestamp": 1}
        for role, number in numbers.items():
            folder = offline if role in ("root", "targets") else online
            for _ in range(number):
                root.add_key(folder.generate(role).public_key, role)
            root.roles[role].threshold = number
        self._sign("root", root, root, offline, now_seconds)
        self._sign("targets", Targets(), root, offline, now_seconds)
        self._sign("snapshot", Snapshot(), root, online, now_seconds)
        self._sign("timestamp", Timestamp(), root, online, now_seconds)

    def publish(
        self,
        manifests: Mapping[TargetName, bytes],
        *,
        offline: KeyFolder,
        online: KeyFolder,
        now_seconds: float,
        withdrawn: Sequence[TargetName] = (),
    ) -> None:
        """Sign manifests as targets; devices trust them as soon as this returns.

        Args:
            manifests: Manifest bytes by name: of a rollout, the new version and the version after it, with the base's
                content, to which devices return if the new one is bad.
            offline: Has the keys of targets.
            online: Has the keys of snapshot and timestamp.
            now_seconds: Seconds since 1970 (UTC).
            withdrawn: Names that are good no more.

        Raises:
            ConfigurationError: If a manifest is larger than a device reads, or a name has another content already.
            NotFoundError: If a key, or the repository, is not there.
        """
        with self._folder.changing():
            targets = self._read("targets", Targets)
            for name in withdrawn:
                targets.targets.pop(str(name), None)
            for name, manifest in manifests.items():
                if not 0 < len(manifest) <= MAX_MANIFEST_BYTES:
                    raise ConfigurationError(
                        f"manifest of {name} has {len(manifest)} bytes; 1 to {MAX_MANIFEST_BYTES} are allowed"
                    )
                file = TargetFile.from_data(str(name), manifest, ["sha256"])
                known = targets.targets.setdefault(str(name), file)
                if known.hashes != file.hashes:
                    raise ConfigurationError(
                        f"{name} has another content already; publish it as a newer version"
                    )
            targets.version += 1
            root = self._read("root", Root)
            self._sign("targets", targets, root, offline, now_seconds)
            self._sign_online(root, online, now_seconds)

    def accept_targets(self, data: bytes, *, online: KeyFolder, now_seconds: float) -> None:
        """Put a file of targets in place that was signed elsewhere; devices trust it as soon as this returns.

        Args:
            data: The file, as `server.target_signing.sign_targets` made it; the newest one again changes nothing.
            online: Has the keys of snapshot and timestamp.
            now_seconds: Seconds since 1970 (UTC).

        Raises:
            ConfigurationError: If the file is damaged, expired, not signed by enough keys of targets, or does not
                follow the newest one.
            NotFoundError: If a key, or the repository, is not there.
        """
        with self._folder.changing():
            root = self._read("root", Root)
            if data != self.read("targets"):
                version = checked_targets(data, root, now_seconds=now_seconds).version
                newest = self._folder.newest("targets")
                if version != newest + 1:
                    raise ConfigurationError(
                        f"version {newest + 1} of targets is next, not {version}: another file was signed meanwhile; "
                        "ask again what is to be signed"
                    )
                self._folder.put("targets", version, data)
            self._sign_online(root, online, now_seconds)

    def refresh(self, online: KeyFolder, *, now_seconds: float) -> bool:
        """Sign snapshot and timestamp anew if half of their lifetimes is over, or they name no newest file.

        Returns whether they were.

        Raises:
            NotFoundError: If a key, or the repository, is not there.
        """
        with self._folder.changing():
            is_due = self._is_half_over(now_seconds) or not self._is_consistent()
            if is_due:
                self._sign_online(self._read("root", Root), online, now_seconds)
        return is_due

    def _is_half_over(self, now_seconds: float) -> bool:
        now = _time(now_seconds)
        return any(
            self._read(role, kind).expires - now < timedelta(days=getattr(self._lifetimes, role) / 2)
            for role, kind in (("snapshot", Snapshot), ("timestamp", Timestamp))
        )

    def _is_consistent(self) -> bool:
        """Return whether the timestamp leads to the newest snapshot, that to the newest targets, by the newest keys."""
        named = self._read("timestamp", Timestamp).snapshot_meta.version
        targets = self._read("snapshot", Snapshot).meta["targets.json"].version
        is_newest = named == self._folder.newest("snapshot") and targets == self._folder.newest("targets")
        root = self._read("root", Root)
        return is_newest and all(
            _is_signed(root, role, self.read(role)) for role in ("snapshot", "timestamp")
        )

    def rotate(
        self, role: str, *, offline: KeyFolder, online: KeyFolder, now_seconds: float, keys: int = 1
    ) -> None:
        """Replace all keys of a role by new ones, and sign what the role signs with them.

        Signatures of the old keys are good no more once a device has the new root. This also renews root's expiry.

        Args:
            role: Whose keys.
            offline: Has the keys of root and targets, and gets theirs.
            online: Likewise, of snapshot and timestamp.
            now_seconds: Seconds since 1970 (UTC).
            keys: How many new keys, all of which are needed.

        Raises:
            ConfigurationError: If there is no such role.
            NotFoundError: If a key, or the repository, is not there.
        """
        with self._folder.changing():
            self._rotate(role, offline, online, now_seconds, keys)

    def _rotate(
        self, role: str, offline: KeyFolder, online: KeyFolder, now_seconds: float, keys: int
    ) -> None:
        if keys < 1:
            raise ConfigurationError("a role needs one key at least")
        folder = offline if role in ("root", "targets") else online
        old = self._read("root", Root)
        root = self._read("root", Root)
        if role not in root.roles:
            raise ConfigurationError(f"no role {role[:80]!r}; there are {', '.join(ROLES)}")
        for key_id in list(root.roles[role].keyids):
            root.revoke_key(key_id, role)
        for _ in range(keys):
            root.add_key(folder.generate(role).public_key, role)
        root.roles[role].threshold = keys
        root.version += 1
        self._sign("root", root, root, offline, now_seconds, also=old)
        if role == "targets":
            targets = self._read("targets", Targets)
            targets.version += 1
            self._sign("targets", targets, root, offline, now_seconds)
        self._sign_online(root, online, now_seconds)

    def read(self, role: str, version: int = 0) -> bytes:
        """Return one signed file.

        Args:
            role: One of the four roles.
            version: Of the file; 0 for the newest.

        Raises:
            NotFoundError: There is none.
        """
        data = self._folder.read(role, version)
        if version and role == "timestamp" and version != self._read(role, Timestamp).version:
            raise NotFoundError(f"of {role} there is the newest version alone, not {version}")
        return data

    def targets(self) -> dict[TargetName, str]:
        """Return the SHA-256 of every manifest that is signed, by name.

        Raises:
            NotFoundError: If the repository is not there.
        """
        files = self._read("targets", Targets).targets
        return {TargetName.parse(name): file.hashes["sha256"] for name, file in files.items()}

    def _sign_online(self, root: Root, online: KeyFolder, now_seconds: float) -> None:
        snapshot, timestamp = self._read("snapshot", Snapshot), self._read("timestamp", Timestamp)
        snapshot.meta["targets.json"] = MetaFile(self._folder.newest("targets"))
        snapshot.version += 1
        self._sign("snapshot", snapshot, root, online, now_seconds)
        data = self.read("snapshot")
        timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, data, ["sha256"])
        timestamp.version += 1
        self._sign("timestamp", timestamp, root, online, now_seconds)
        self._folder.forget_old()

    def _sign(
        self,
        role: str,
        signed: Signed,
        root: Root,
        folder: KeyFolder,
        now_seconds: float,
        *,
        also: Root | None = None,
    ) -> None:
        """Sign with all keys of the role, and those of the root before; check; and put the file in place."""
        lifetime = timedelta(days=getattr(self._lifetimes, role))
        signed.expires = _time(now_seconds) + lifetime
        metadata: Metadata[Any] = Metadata(signed)
        key_ids = {key for delegator in (root, also) if delegator for key in delegator.roles[role].keyids}
        for key_id in sorted(key_ids):
            metadata.sign(folder.signer(role, key_id), append=True)
        for delegator in (root, also):
            if delegator is not None:
                delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        self._folder.put(role, signed.version, metadata.to_bytes(_COMPACT))

    def _read(self, role: str, kind: type[_Signed]) -> _Signed:
        data = self.read(role)
        try:
            signed = Metadata[Any].from_bytes(data).signed
        except RepositoryError as error:
            raise ConfigurationError(f"{role} in {self.path} is damaged: {error}") from error
        if not isinstance(signed, kind):
            raise ConfigurationError(f"{role} in {self.path} is a file of another role")
        return signed


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _is_signed(root: Root, role: str, data: bytes) -> bool:
    """Return whether a file of a role has the signatures that root asks for."""
    metadata = Metadata[Any].from_bytes(data)
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return False
    return True
