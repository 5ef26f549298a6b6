"""Every parser of bytes that come over a network or from a disk, under one signature: bytes in, nothing out.

A parser may return, or refuse with an error of `QuantFleetError`; nothing else. What bytes alone do not say (a base,
a layout, a first root) is fixed here, or lies in a folder. Imports nothing that only servers have where a group does
not need it: a fuzzing process starts in a second.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

Parser = Callable[[bytes], object]
Group = Mapping[str, Parser]

ROOT_FILE = "root.json"
BASE = bytes(range(256)) * 16
CONTENT = BASE[:2048] + bytes(64) + BASE[2112:]


class FakeStream:
    """A gRPC stream that brings the same message a few times."""

    def __init__(self, message: bytes, times: int = 2) -> None:
        self._messages = iter([message] * times)

    def __next__(self) -> bytes:
        return next(self._messages)

    def cancel(self) -> bool:
        return True


def files(_folder: Path) -> Group:
    """Return parsers of what artifacts and state folders hold."""
    from client.credentials import ServiceFile  # noqa: PLC0415
    from client.disk import Disk  # noqa: PLC0415
    from client.partial import PartialBlobs  # noqa: PLC0415
    from client.slots import Slots  # noqa: PLC0415
    from client.spool import Spool  # noqa: PLC0415
    from client.state import StateFolder  # noqa: PLC0415
    from quantization.manifest import Manifest  # noqa: PLC0415
    from quantization.policy import Policy  # noqa: PLC0415
    from quantization.self_testing import SelfTest  # noqa: PLC0415

    place = Path(tempfile.mkdtemp(prefix="fuzz"))
    parts, digest = place / "partial", "ab" * 32
    parts.mkdir()
    state = StateFolder(place / "state")
    spool = place / "state" / "spool"
    spool.mkdir()

    def slots(data: bytes) -> object:
        return Slots.from_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

    def partial(data: bytes) -> object:
        (parts / f"{digest}.head").write_bytes(data)
        (parts / digest).write_bytes(data[:7])
        return PartialBlobs(parts, Disk()).want(digest)

    def spooled(data: bytes) -> object:
        report = spool / f"{1:020d}"
        report.write_bytes(data)
        return [*Spool(state).pending()]

    def used(data: bytes) -> object:
        (spool / "used").write_bytes(data)
        try:
            return Spool(state).last_used
        finally:
            (spool / "used").unlink()

    return {
        "manifest": lambda data: Manifest.from_bytes(data).digest(),
        "policy": lambda data: Policy.from_json_bytes(data).to_json_bytes(),
        "slots": slots,
        "damaged slots": Slots.from_bytes,
        "self-test": lambda data: SelfTest.from_content(data).to_content(),
        "service file": lambda data: ServiceFile.parse(data).to_bytes(),
        "partial head": partial,
        "spooled report": spooled,
        "spool's last number": used,
    }


def blobs(_folder: Path) -> Group:
    """Return parsers of blobs, and of differences between them."""
    from quantization.blob import check_stored, content_digest, decode_blob_content  # noqa: PLC0415
    from quantization.bundle import Part, read_bundle  # noqa: PLC0415
    from quantization.delta import apply_delta  # noqa: PLC0415

    digest = content_digest(CONTENT)
    parts = (Part(digest, len(CONTENT), content_digest(BASE), False), Part("cd" * 32, 64, "", True))
    return {
        "blob": lambda data: decode_blob_content(data, digest),
        "blob of a known size": lambda data: decode_blob_content(data, digest, len(CONTENT)),
        "stored blob": lambda data: check_stored(data, digest, "here"),
        "difference": lambda data: apply_delta(data, BASE, digest),
        "bundle": lambda data: [*read_bundle(data, parts, lambda _digest: BASE)],
    }


def archives(_folder: Path) -> Group:
    """Return parsers of NumPy archives."""
    from client.sampler import Sampler  # noqa: PLC0415
    from quantization.layer_codes import from_bytes  # noqa: PLC0415
    from quantization.npz_content import unpack_arrays  # noqa: PLC0415

    return {
        "sample": lambda data: Sampler((2, 3), max_bytes=240).restore(data),
        "arrays": unpack_arrays,
        "rounded weights": from_bytes,
    }


def messages(_folder: Path) -> Group:
    """Return parsers of gRPC's messages, as devices, servers and local services read them."""
    from client.grpc_blobs import blob_pieces  # noqa: PLC0415
    from client.tensors import tensor_from_proto  # noqa: PLC0415
    from client.update_messages import Announcements, metadata_chunks, offer_of, parsed  # noqa: PLC0415
    from protos.quantfleet.v1 import inference_pb2, telemetry_pb2, update_pb2  # noqa: PLC0415
    from server.telemetry_proto import reports_from_proto  # noqa: PLC0415

    return {
        "offer": lambda data: offer_of(parsed(update_pb2.CheckResponse, data)),
        "announcement": lambda data: next(Announcements(FakeStream(data))),
        "metadata chunks": lambda data: [*metadata_chunks(FakeStream(data), "timestamp")],
        "blob chunks": lambda data: [*blob_pieces(FakeStream(data), 60.0, None)],
        "tensor": lambda data: tensor_from_proto(parsed(inference_pb2.InferRequest, data).input),
        "reports": lambda data: reports_from_proto(parsed(telemetry_pb2.ReportRequest, data), "press-7"),
    }


def identity(_folder: Path) -> Group:
    """Return parsers of names, tokens, keys and certificates."""
    from client.credentials import check_address, parse_key  # noqa: PLC0415
    from quantization.enrolment_token import EnrolmentToken  # noqa: PLC0415
    from quantization.principal import Principal  # noqa: PLC0415
    from quantization.target_name import TargetName  # noqa: PLC0415
    from server.signing_requests import requested_key  # noqa: PLC0415

    def of_text(parse: Callable[[str], object]) -> Parser:
        return lambda data: parse(data.decode(errors="surrogateescape"))

    return {
        "token": of_text(EnrolmentToken.parse),
        "principal": of_text(Principal.parse),
        "target name": of_text(TargetName.parse),
        "address": of_text(check_address),
        "private key": parse_key,
        "certificate request": requested_key,
    }


def metadata(folder: Path) -> Group:
    """Return parsers of signed metadata; the folder has the root that is trusted."""
    from trust import NOW, MemoryFiles  # noqa: PLC0415

    from client.trusted_metadata import TrustedMetadata  # noqa: PLC0415
    from quantization.errors import NotFoundError  # noqa: PLC0415

    first_root = (folder / ROOT_FILE).read_bytes()

    def of_role(role: str) -> Parser:
        def parse(data: bytes) -> object:
            def fetch(asked: str, version: int) -> Iterator[bytes]:
                if asked != role or (role == "root" and version > 2):
                    raise NotFoundError(f"no {asked} {version}")
                yield data

            return TrustedMetadata(MemoryFiles(), first_root=first_root).refresh(fetch, now_seconds=NOW)

        return parse

    def kept(data: bytes) -> object:
        def fetch(role: str, version: int) -> Iterator[bytes]:
            raise NotFoundError(f"no {role} {version}")

        held = MemoryFiles(dict.fromkeys(("root", "timestamp", "snapshot", "targets"), data))
        return TrustedMetadata(held, first_root=first_root).refresh(fetch, now_seconds=NOW)

    return {"root": of_role("root"), "timestamp": of_role("timestamp"), "kept files": kept}


def records(_folder: Path) -> Group:
    """Return parsers of Flower's records, requests and replies."""
    from flwr.common.serde import recorddict_from_proto  # noqa: PLC0415
    from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto  # noqa: PLC0415
    from fuzzed_records import DECODERS  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    def of_decoder(decode: Callable[..., object]) -> Parser:
        def parse(data: bytes) -> object:
            try:
                content = recorddict_from_proto(RecordDictProto.FromString(data))
            except (DecodeError, ValueError, TypeError, KeyError, AttributeError):
                return None  # Flower's own parser refuses it, in Flower's own process
            return decode(content)

        return parse

    return {name: of_decoder(decode) for name, (decode, _) in DECODERS.items()}


GROUPS: Mapping[str, Callable[[Path], Group]] = MappingProxyType(
    {
        "files": files,
        "blobs": blobs,
        "archives": archives,
        "messages": messages,
        "identity": identity,
        "metadata": metadata,
        "records": records,
    }
)
