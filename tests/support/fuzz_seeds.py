"""What parsers read every day: a fuzzer's first inputs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from artifacts import example
from certificate_requests import request_for
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding as KeyEncoding
from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat
from flwr.common.serde import recorddict_to_proto
from fuzzed_parsers import BASE, CONTENT, ROOT_FILE
from fuzzed_records import DECODERS
from trust import MODEL, Repository

from client.credentials import ServiceFile
from client.disk import Disk
from client.partial import PartialBlobs
from client.sampler import Sampler
from client.slots import Event, Slots, Target
from client.spool import Spool
from client.state import StateFolder
from client.tensors import tensor_to_proto
from client.transport import Payload
from protos.quantfleet.v1 import inference_pb2, telemetry_pb2, update_pb2
from quantization.affine import params_from_range
from quantization.blob import content_digest, encode_blob
from quantization.bundle import Part, make_bundle
from quantization.calibration import Range
from quantization.delta import Encoding, make_deltas
from quantization.enrolment_token import EnrolmentToken
from quantization.layer_codes import LayerCodes, to_bytes
from quantization.policy import Policy
from quantization.principal import Principal, Role
from quantization.renormalization import ChannelCorrection
from quantization.self_testing import SelfTest
from strategies.messages import Delivery

Seeds = dict[str, list[bytes]]
"""By the name of the parser that reads them."""


def seeds(group: str, folder: Path) -> Seeds:
    """Return examples for each parser of a group; writes into the folder what the parsers must find there."""
    makers: dict[str, Callable[[Path], Seeds]] = {
        "files": _files,
        "blobs": _blobs,
        "archives": _archives,
        "messages": _messages,
        "identity": _identity,
        "metadata": _metadata,
        "records": _records,
    }
    return makers[group](folder)


def _files(folder: Path) -> Seeds:
    manifest = example("mlp").artifact().manifest
    correction = ChannelCorrection(np.array([1.0, 0.5]), np.array([0.0, 2.0]))
    policy = Policy(
        MODEL,
        "arm",
        3,
        {"x": Range(-1.0, 2.0)},
        {"fc": 4},
        {"fc": correction},
        "mse",
        float_layers={"a": "fp16"},
    )
    slots = Slots().advance(Event.INSTALLED, Target(1, "ab" * 32))
    slots = slots.advance(Event.TARGET_STAGED, Target(2, "cd" * 32))
    params = params_from_range(-1.0, 1.0)
    test = SelfTest(params, params, np.arange(8, dtype=np.uint8).reshape(4, 2))
    with StateFolder(folder / "state") as state:
        spool = Spool(state)
        spool.append(b"report")
        report = next((folder / "state" / "spool").glob("0*")).read_bytes()
    parts = PartialBlobs(folder / "partial", Disk())
    parts.begin(Payload("ab" * 32, Encoding.BSDIFF, "cd" * 32, 99, "ef" * 32), 0)
    return {
        "manifest": [manifest.to_bytes()],
        "policy": [policy.to_json_bytes()],
        "slots": [slots.to_bytes().partition(b"\n")[2]],
        "damaged slots": [slots.to_bytes()],
        "self-test": [test.to_content()],
        "service file": [ServiceFile("a.org:9443", "a.org:9444", "press-7").to_bytes()],
        "partial head": [(folder / "partial" / f"{'ab' * 32}.head").read_bytes()],
        "spooled report": [report],
        "spool's last number": [b"17\n"],
    }


def _blobs(_folder: Path) -> Seeds:
    codes = np.tile(np.array([-1, 0, 1, 1], np.int8), 300).tobytes()
    blobs = [encode_blob(CONTENT), encode_blob(codes, is_codes=True), encode_blob(b"")]
    shifted = BASE[5:] + BASE[:5]
    deltas = [*make_deltas(BASE, CONTENT), *make_deltas(BASE, shifted), *make_deltas(BASE, BASE[100:])]
    digest, other = content_digest(CONTENT), bytes(64)
    contents = {digest: CONTENT, content_digest(BASE): BASE, content_digest(other): other}
    parts = (
        Part(digest, len(CONTENT), content_digest(BASE), may_move=False),
        Part(content_digest(other), 64, "", may_move=True),
    )
    bundle = make_bundle(parts, contents.__getitem__, lambda name: encode_blob(contents[name]))
    return {
        "blob": blobs,
        "blob of a known size": blobs[:1],
        "stored blob": blobs[:1],
        "difference": [delta.payload for delta in deltas],
        "bundle": [bundle],
    }


def _archives(_folder: Path) -> Seeds:
    sampler = Sampler((2, 3), max_bytes=240)
    sampler.offer(np.arange(36, dtype=np.float32).reshape(6, 2, 3))
    layer = LayerCodes(np.ones((2, 3), np.int8), np.ones(2, np.float32), np.zeros(2))
    weights = to_bytes({"fc": layer})
    return {"sample": [sampler.to_bytes()], "arrays": [weights], "rounded weights": [weights]}


def _messages(_folder: Path) -> Seeds:
    payload = update_pb2.BlobPayload(
        digest=bytes(32), encoding=update_pb2.BLOB_ENCODING_FULL, total_bytes=9, payload_digest=bytes(32)
    )
    report = telemetry_pb2.TelemetryReport(
        model_digest=bytes(32), device_class="arm", sequence=4, version=2, manifest_digest=bytes(32)
    )
    report.counts.samples = 10
    report.installs.add(version=2, outcome=telemetry_pb2.INSTALL_OUTCOME_REVERTED, manifest_digest=bytes(32))
    messages = {
        "offer": update_pb2.CheckResponse(version=3, manifest_digest=bytes(32), retry_after_seconds=4.0),
        "announcement": update_pb2.TargetChanged(version=3, manifest_digest=bytes(32)),
        "metadata chunks": update_pb2.MetadataChunk(data=b"{}", total_bytes=2),
        "blob chunks": update_pb2.BlobChunk(payload=payload, data=b"012345678"),
        "tensor": inference_pb2.InferRequest(input=tensor_to_proto(np.zeros((2, 3), np.float32))),
        "reports": telemetry_pb2.ReportRequest(reports=[report]),
    }
    found = {name: [message.SerializeToString()] for name, message in messages.items()}
    found["blob chunks"].append(update_pb2.BlobChunk(offset_bytes=9, data=b"12").SerializeToString())
    return found


def _identity(_folder: Path) -> Seeds:
    key = generate_private_key(SECP256R1())
    pem = key.private_bytes(KeyEncoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "token": [EnrolmentToken("a" * 43, "0f" * 32).text.encode()],
        "principal": [Principal(Role.DEVICE, "press-7").uri.encode()],
        "target name": [f"{MODEL}/arm/12".encode()],
        "address": [b"fleet.example.org:9443"],
        "private key": [pem],
        "certificate request": [request_for(key), request_for(key, uri="https://example.org")],
    }


def _metadata(folder: Path) -> Seeds:
    repository = Repository.create(folder / "repository")
    repository.rotate("root")
    repository.publish(1, b"manifest")
    first, second = (repository.metadata.read("root", version) for version in (1, 2))
    (folder / ROOT_FILE).write_bytes(first)
    now = [repository.metadata.read(role, 0) for role in ("timestamp", "snapshot", "targets")]
    deep = b"[" * 100_000
    expired = json.dumps({"signed": {"_type": "root", "version": 2}, "signatures": []}).encode()
    return {"root": [second, deep, expired], "timestamp": [now[0], deep], "kept files": [first, *now]}


def _records(_folder: Path) -> Seeds:
    artifact = Delivery(example("mlp").artifact().manifest.to_bytes(), {"ab" * 32: b"blob"})
    return {
        name: [recorddict_to_proto(make(artifact)).SerializeToString()]
        for name, (_, make) in DECODERS.items()
    }
