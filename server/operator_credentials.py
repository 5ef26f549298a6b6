"""What an operator shows to a server, from the folder that was made for the operator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from quantization.errors import ConfigurationError, NotFoundError, QuantFleetError
from quantization.principal import Role
from server.pem import parse_certificate, parse_key, principal_of
from server.private_files import read_private

_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, repr=False)
class OperatorCredentials:
    """What an operator has in a folder.

    Attributes:
        name: The operator's name.
        authority_pem: The fleet's authority.
        certificate_pem: The operator's certificate.
        key_pem: Its private key.
    """

    name: str
    authority_pem: bytes
    certificate_pem: bytes
    key_pem: bytes

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what is in a folder that `quantfleet-server keys operator` made.

        Raises:
            NotFoundError: Something is missing.
            ConfigurationError: Something is damaged, or others may read the key.
        """
        try:
            key_pem = read_private(folder / "operator.key", _MAX_BYTES)
            certificate_pem = (folder / "operator.crt").read_bytes()
            authority_pem = (folder / "ca.crt").read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{error.filename} is missing; name an operator's folder, as `quantfleet-server keys operator` makes it"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"{error.filename} cannot be read ({error.strerror})") from error
        try:
            certificate, key = parse_certificate(certificate_pem), parse_key(key_pem)
            parse_certificate(authority_pem)
            principal = principal_of(certificate)
        except QuantFleetError as error:
            raise ConfigurationError(f"{folder} is damaged: {error}") from error
        if principal.role is not Role.OPERATOR or certificate.public_key() != key.public_key():
            raise ConfigurationError(f"{folder} is not an operator's: its certificate names {principal.uri}")
        return cls(principal.name, authority_pem, certificate_pem, key_pem)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel needs: it shows the certificate and trusts the fleet's authority alone."""
        return grpc.ssl_channel_credentials(self.authority_pem, self.key_pem, self.certificate_pem)
