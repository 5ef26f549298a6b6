"""Files that take the place of an artifact's own, as they travel in a request.

Sets of overrides share contents and names of locations, so each travels once: contents as blobs, which hold codes of
few bits in few bits, under the digest of what they decode to; an int64 table says which set has which content where.
A reader decodes a blob only where the artifact's manifest has a file of that name and size.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from quantization.artifact import Manifest
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.errors import DigestMismatchError, MalformedError
from strategies.messages import Overrides
from strategies.wire import array_record, decode_bytes, decode_vector, encode_bytes, encode_vector, read_texts

MAX_LOCATIONS = 1 << 14
MAX_LOCATION_LENGTH = 512
MAX_SETS = 1 << 14
MAX_ENTRIES = 1 << 20
MAX_BLOB_BYTES = (256 << 20) + 8
MAX_DECODED_BYTES = 1 << 30
"""Most that all contents of one request may decode to."""

_LOCATIONS = "locations"
_TABLE = "table"
_OVERRIDES = "overrides"
_OVERRIDE_BLOBS = "override_blobs"


def override_locations(sets: Sequence[Overrides]) -> dict[str, list[str]]:
    """Return the setting that names the locations of all sets."""
    return {_LOCATIONS: _locations(sets)}


def override_records(sets: Sequence[Overrides]) -> dict[str, ArrayRecord]:
    """Return the records that hold the sets, in order; their locations go into the settings."""
    locations = {name: index for index, name in enumerate(_locations(sets))}
    digests: dict[int, str] = {}  # by identity: sets often share their contents
    blobs: dict[str, bytes] = {}
    table: list[tuple[int, int, str]] = []
    for index, files in enumerate(sets):
        for location, content in sorted(files.items()):
            digest = digests.setdefault(id(content), "") or content_digest(content)
            digests[id(content)] = digest
            if digest not in blobs:
                blobs[digest] = encode_blob(content, is_codes=True)
            table.append((index, locations[location], digest))
    order = {digest: index for index, digest in enumerate(sorted(blobs))}
    rows = np.array([(index, location, order[digest]) for index, location, digest in table], np.int64)
    return {
        _OVERRIDES: ArrayRecord({_TABLE: encode_vector(rows)}),
        _OVERRIDE_BLOBS: ArrayRecord({digest: encode_bytes(blobs[digest]) for digest in sorted(blobs)}),
    }


def read_overrides(
    content: RecordDict, settings: Mapping[str, object], manifest: bytes, sets: int
) -> tuple[dict[str, bytes], ...]:
    """Return the sets that `override_records` wrote.

    Args:
        content: Of the message.
        settings: Of the message.
        manifest: Bytes of the artifact's manifest, whose files they replace.
        sets: How many there must be.

    Raises:
        MalformedError: If anything is missing, of another type, beyond its bounds, or not in place of a file.
    """
    sizes = {ref.location: ref.decoded_size_bytes for ref in Manifest.from_bytes(manifest).stages[0].files}
    locations = read_texts(settings, _LOCATIONS, MAX_LOCATIONS, MAX_LOCATION_LENGTH)
    unknown = [location for location in locations if location not in sizes]
    if unknown:
        raise MalformedError(f"overrides of {unknown[0]!r:.80}, which is no file of the artifact")
    arrays = array_record(content, _OVERRIDE_BLOBS)
    digests = sorted(arrays)
    vector = decode_vector(
        array_record(content, _OVERRIDES).get(_TABLE), "overrides", ("int64",), (0, 3 * MAX_ENTRIES)
    )
    if vector.size % 3:
        raise MalformedError(f"a table of overrides with {vector.size} elements")
    table = vector.reshape(-1, 3)
    bounds = (sets, len(locations), len(digests))
    if table.size and not ((table >= 0) & (table < bounds)).all():
        raise MalformedError("a table of overrides that points beyond its lists")
    result: tuple[dict[str, bytes], ...] = tuple({} for _ in range(sets))
    decoded: dict[tuple[int, int], bytes] = {}
    total = 0
    for index, location, blob in table.tolist():
        name, digest = locations[location], digests[blob]
        if name in result[index]:
            raise MalformedError(f"file {name!r:.80} is replaced twice")
        if (blob, sizes[name]) not in decoded:
            total += sizes[name]
            if total > MAX_DECODED_BYTES:
                raise MalformedError(f"overrides of more than {MAX_DECODED_BYTES} decoded bytes")
            stored = decode_bytes(arrays[digest], f"blob {digest:.12}", MAX_BLOB_BYTES)
            decoded[blob, sizes[name]] = _decoded(stored, digest, sizes[name], name)
        result[index][name] = decoded[blob, sizes[name]]
    return result


def _decoded(stored: bytes, digest: str, size: int, location: str) -> bytes:
    try:
        return decode_blob_content(stored, digest, size)
    except (MalformedError, DigestMismatchError) as error:
        raise MalformedError(f"override of {location!r:.80}: {error}") from error


def _locations(sets: Sequence[Overrides]) -> list[str]:
    return sorted({location for files in sets for location in files})
