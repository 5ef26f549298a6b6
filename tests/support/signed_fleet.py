"""A whole server with certificates and signatures, and devices that were enrolled at it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agents import EXAMPLE
from shop import CLASS, Shop, make_shop, operator, served

from client.enrolment import enroll
from protos.quantfleet.v1 import admin_pb2
from quantization.artifact import Artifact
from quantization.device_class import X86_VNNI
from quantization.enrolment_token import EnrolmentToken
from server.admin_client import AdminClient
from server.candidate import store_artifact
from server.enrolment_service import EnrolmentSettings
from server.entries import Lab, Model
from server.home_folder import HomeFolder
from server.identity_registry import IdentityRegistry
from server.telemetry_settings import TelemetrySettings
from server.update_settings import UpdateSettings


@dataclass
class SignedFleet:
    """What an operator and devices do with a running server.

    Attributes:
        home: Of the server.
        shop: Its stores.
        address: For devices that have certificates.
        enrolment_address: For those that have not.
        admin: An operator.
    """

    home: HomeFolder
    shop: Shop
    address: str
    enrolment_address: str
    admin: AdminClient

    @property
    def authority_pem(self) -> bytes:
        """What callers recognise the server by."""
        return self.home.pki().authority().certificate_pem

    def token(self, device: str) -> str:
        """Return a token, as an operator hands it out."""
        registry = IdentityRegistry.open(self.shop.settings.registry_place)
        made = registry.new_token(valid_seconds=3600.0, actor="ana", device=device)
        registry.close()
        return EnrolmentToken(made.secret, self.home.pki().authority().fingerprint).text

    def enrol(self, state: Path, device: str = "device-1") -> None:
        """Give a device an identity."""
        enroll(state, self.enrolment_address, self.token(device), device)

    def revoke(self, device: str = "device-1") -> None:
        """Take a device's identity away."""
        registry = IdentityRegistry.open(self.shop.settings.registry_place)
        registry.revoke_device(device, actor="ana")
        registry.close()

    def publish(self, artifact: Artifact) -> admin_pb2.Rollout:
        """Sign an artifact, and give it to all devices at once."""
        digest = store_artifact(self.shop.stores.blobs, artifact)
        keys = self.home.offline_keys()
        return self.admin.publish(digest, keys, now_seconds=time.time(), is_immediate=True).rollout


@contextmanager
def signed_fleet(folder: Path, **places: str) -> Iterator[SignedFleet]:
    """Serve in a thread while the block runs."""
    shop = make_shop(folder, is_insecure=False, artifacts=1, **places)
    quick = replace(
        shop.settings,
        update=UpdateSettings(
            poll_seconds=0.05, calls_burst=10_000, retry_seconds=0.05, heartbeat_seconds=0.5
        ),
        telemetry=TelemetrySettings(report_seconds=0.1),
        enrolment=EnrolmentSettings(revocation_poll_seconds=0.05, calls_burst=1000),
    )
    model_digest = EXAMPLE.artifact().manifest.model_digest
    shop.stores.registry.add_model(Model(model_digest, "small", len(EXAMPLE.model)))
    shop.stores.registry.add_device_class(X86_VNNI)
    shop.stores.registry.add_lab(Lab(model_digest, CLASS, "0" * 64, 10))
    try:
        with served(quick) as addresses, operator(shop, addresses.address) as admin:
            yield SignedFleet(HomeFolder(folder), shop, addresses.address, addresses.enrolment_address, admin)
    finally:
        shop.stores.engine.dispose()
