"""Believes an offer only if it is signed: the service says which version a device should have, and is not trusted to.

This module knows The Update Framework by the three methods of `client.trusted_metadata.TrustedMetadata` that it calls;
whoever makes that object pays for importing python-tuf (22 MB of memory).
"""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

from client.slots import Target
from quantization.blob import HEADER_BYTES
from quantization.errors import DigestMismatchError, UpdateRejectedError
from quantization.target_name import TargetName


class Signed(Protocol):
    """What is signed of one target."""

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, hex."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...


class Trust(Protocol):
    """Signed metadata; see `client.trusted_metadata.TrustedMetadata`."""

    def refresh(self, fetch: Callable[[str, int], Iterable[bytes]], *, now_seconds: float) -> None:
        """Fetch and verify what is newer."""
        ...

    def manifest_of(self, name: TargetName, *, least_version: int) -> Signed:
        """Return what is signed of a target."""
        ...


class SignedOffers:
    """Checks offers against signed metadata, which is refreshed when that is needed.

    Attributes:
        size_bytes: Signed sizes of the manifests that were checked, by digest.
    """

    def __init__(
        self,
        trust: Trust,
        fetch: Callable[[str, int], Iterable[bytes]],
        *,
        refresh_seconds: float,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        """Check offers.

        Args:
            trust: Signed metadata.
            fetch: Where its files come from.
            refresh_seconds: Longest time without a look at it, although nothing new is offered.
            wall_clock: Seconds since 1970 (UTC), which expiry is judged by.
            clock: Seconds that never go back.
        """
        self.size_bytes: dict[str, int] = {}
        self._trust, self._fetch = trust, fetch
        self._refresh_seconds, self._wall_clock, self._clock = refresh_seconds, wall_clock, clock
        self._refreshed_at = -math.inf

    def check(self, name: TargetName, offered: Target, serving: Target | None, least_version: int) -> None:
        """Refuse an offer that is not signed.

        What the device runs already costs no question, but for a look at the metadata once in a while.

        Raises:
            StaleVersionError: It, or the metadata, is older than what this device has had.
            DigestMismatchError: Another manifest is signed under its name, or metadata does not fit together.
            UpdateRejectedError: It is not signed, or the metadata is not trusted.
            UnreachableError: The metadata cannot be fetched now.
        """
        is_due = self._clock() - self._refreshed_at >= self._refresh_seconds
        if offered == serving and not is_due:
            return
        self._trust.refresh(self._fetch, now_seconds=self._wall_clock())
        self._refreshed_at = self._clock()
        if offered == serving:
            return
        signed = self._trust.manifest_of(name, least_version=least_version)
        if signed.digest != offered.manifest_digest:
            raise DigestMismatchError(
                f"manifest {offered.manifest_digest[:12]}... is offered as {name}, which is signed as "
                f"{signed.digest[:12]}..."
            )
        self.size_bytes = {signed.digest: signed.size_bytes}

    def check_size(self, digest: str, size_bytes: int) -> None:
        """Refuse a payload that is larger than what is signed under its name.

        Raises:
            UpdateRejectedError: It is.
        """
        signed = self.size_bytes.get(digest)
        if signed is not None and size_bytes > HEADER_BYTES + signed:
            raise UpdateRejectedError(
                f"{size_bytes} bytes are offered for a manifest that is signed with {signed}"
            )
