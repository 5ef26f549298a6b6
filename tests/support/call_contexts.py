"""The part of a call's context by which a service knows the caller."""

from collections.abc import Mapping, Sequence
from typing import Any


class CallContext:
    """What gRPC says of a connection."""

    def __init__(
        self, certificate_pem: bytes | None = None, metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        self._auth: dict[str, list[bytes]] = (
            {} if certificate_pem is None else {"x509_pem_cert": [certificate_pem]}
        )
        self._metadata = metadata

    def auth_context(self) -> Mapping[str, Any]:
        return self._auth

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:10.0.0.1:4000"
