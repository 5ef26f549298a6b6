"""What a server shows on its two ports; it is read anew when the certificate was renewed."""

import grpc

from quantization.errors import QuantFleetError
from server.pem import parse_certificate, parse_key
from server.pki import PkiFolder


def mutual_credentials(pki: PkiFolder) -> grpc.ServerCredentials:
    """Return credentials of a port where callers must show a certificate of the fleet.

    Raises:
        NotFoundError: The server has no certificate.
        ConfigurationError: A file is damaged, or others may read a key.
    """
    return _credentials(pki, needs_certificate=True)


def enrolment_credentials(pki: PkiFolder) -> grpc.ServerCredentials:
    """Return credentials of the port where callers have no certificate yet; errors are those of the other."""
    return _credentials(pki, needs_certificate=False)


def _credentials(pki: PkiFolder, *, needs_certificate: bool) -> grpc.ServerCredentials:
    configuration = _Configuration(pki)
    return grpc.dynamic_ssl_server_credentials(
        configuration.read(),
        configuration.changed,  # type: ignore[arg-type]  # None says that nothing has changed
        require_client_authentication=needs_certificate,
    )


class _Configuration:
    """The server's certificate as it was read last; gRPC asks at every handshake, from a thread of its own."""

    def __init__(self, pki: PkiFolder) -> None:
        self._pki = pki
        self._seen: tuple[int, int] | None = None

    def read(self) -> grpc.ServerCertificateConfiguration:
        seen = self._stamp()
        key, certificate = self._pki.server_pair()
        authority = self._pki.authority_pem()
        parse_key(key)
        parse_certificate(certificate)
        self._seen = seen
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate if it was renewed; None if not, or if it cannot be read now."""
        if self._stamp() == self._seen:
            return None
        try:
            return self.read()
        except QuantFleetError:
            return None

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = (self._pki.path / "server.crt").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino
