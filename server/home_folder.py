"""Where a server keeps what: the folder of `--home`.

registry.db, blobs/, deltas/     facts and content, where no other place is named
metadata/                        signed metadata: `server.signed_metadata`
keys/online/                     keys of snapshot and timestamp: `server.keys`
keys/offline/                    keys of root and targets, if they are not kept elsewhere
pki/                             the authority, the server, operators: `server.pki`
"""

from dataclasses import dataclass
from pathlib import Path

from server.certificates import DEFAULT_LIFETIMES, CertificateLifetimes
from server.keys import KeyFolder
from server.pki import PkiFolder
from server.signed_metadata import SignedMetadata


@dataclass(frozen=True, slots=True)
class HomeFolder:
    """The folder, which need not be there yet.

    Attributes:
        path: Of the folder.
        offline: Folder with the keys of root and targets; None for the one in the home folder.
    """

    path: Path
    offline: Path | None = None

    @property
    def metadata(self) -> SignedMetadata:
        """The signed metadata."""
        return SignedMetadata(self.path / "metadata")

    def online_keys(self) -> KeyFolder:
        """Return the keys that stay on the server; errors are those of `KeyFolder`."""
        return KeyFolder(self.path / "keys" / "online")

    def offline_keys(self, passphrase: str | None = None) -> KeyFolder:
        """Return the keys that need not; errors are those of `KeyFolder`."""
        return KeyFolder(self.offline or self.path / "keys" / "offline", passphrase)

    def pki(self, lifetimes: CertificateLifetimes = DEFAULT_LIFETIMES) -> PkiFolder:
        """Return the authority's folder."""
        return PkiFolder(self.path / "pki", lifetimes)
