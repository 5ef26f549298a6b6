"""Fetches a blob that decodes to far more than its manifest says, over gRPC, and prints how much memory that took.

python bomb_victim.py frame|header|difference guarded|unguarded
"""

import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from evil_updates import MODEL, answer
from grpc_updates import scripted
from update_client import CLASS

from client import verifying
from client.fetching import fetch_blobs
from client.grpc_transport import GrpcTransport
from client.partial import PartialBlobs
from client.state import StateFolder
from protos.quantfleet.v1 import update_pb2 as pb
from quantization import blob, delta_streams
from quantization.blob import content_digest, encode_blob
from quantization.errors import QuantFleetError

BOMB_BYTES = 240 << 20
DECLARED_BYTES = 100_000
DIGEST, BASE = "ab" * 32, b"base" * 25_000


def frame() -> bytes:
    """Return a zstd frame of a few KB that has far more inside."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=BOMB_BYTES)
    return b"".join(
        [*(compressor.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)), compressor.flush()]
    )


def bomb(kind: str) -> tuple[bytes, dict[str, Any]]:
    """Return a payload, and what its head says of it."""
    if kind == "difference":
        stream = struct.pack("<II", DECLARED_BYTES, len(frame())) + frame()
        lies = {
            "encoding": pb.BLOB_ENCODING_INT8_SUB_ZSTD,
            "base_digest": bytes.fromhex(content_digest(BASE)),
        }
        return struct.pack("<2sBBI", b"QD", 2, 0, DECLARED_BYTES) + stream, lies
    size = BOMB_BYTES if kind == "header" else DECLARED_BYTES
    return struct.pack("<2sBBI", b"QF", 1, 8, size) + frame(), {}


def unguard(kind: str) -> None:
    """Take away the check that a bomb meets."""

    def decompress(body: memoryview, size: int) -> bytes:
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)

    blob._decompress = delta_streams._decompress = decompress
    if kind == "header":
        verifying.content_size_bytes = lambda _: DECLARED_BYTES  # type: ignore[assignment]


def peak_mib() -> float:
    """Return the most memory that this process ever held."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def main(kind: str, guard: str) -> None:
    """Fetch, and print."""
    data, lies = bomb(kind)

    def send(requests: Iterator[bytes], _context: object) -> Iterator[bytes]:
        list(requests)
        yield from answer(DIGEST, data, **lies)

    if guard == "unguarded":
        unguard(kind)
    with (
        tempfile.TemporaryDirectory() as folder,
        scripted(FetchBlobs=send) as address,
        StateFolder(folder) as state,
        GrpcTransport.open(
            address, None, "victim", None, device_class=CLASS, model_digest=MODEL
        ) as transport,
    ):
        state.store_blob(content_digest(BASE), encode_blob(BASE))
        before, error = peak_mib(), ""
        try:
            fetch_blobs(
                transport, state, PartialBlobs(Path(folder) / "partial", state.disk), {DIGEST: DECLARED_BYTES}
            )
        except (
            QuantFleetError,
            ValueError,
        ) as found:  # without its guard, what reads a difference trips over it
            error = type(found).__name__
        sys.stdout.write(json.dumps({"grown_mib": peak_mib() - before, "error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
