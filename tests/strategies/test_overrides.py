import numpy as np
import pytest
from artifacts import example
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.blob import content_digest, encode_blob
from quantization.errors import MalformedError
from strategies.overrides import override_locations, override_records, read_overrides
from strategies.wire import encode_bytes, encode_vector

MANIFEST = example("mlp").artifact().manifest
SIZES = {ref.location: ref.decoded_size_bytes for ref in MANIFEST.stages[0].files}


@st.composite
def overrides(draw: st.DrawFn) -> dict[str, bytes]:
    """Codes of few bits for some files, often the same content for two sets."""
    locations = draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True))
    return {
        location: np.random.default_rng(draw(st.integers(0, 2)))
        .integers(-2, 2, SIZES[location], np.int8)
        .tobytes()
        for location in locations
    }


def message(sets: list[dict[str, bytes]]) -> RecordDict:
    return RecordDict({"settings": ConfigRecord(override_locations(sets)), **override_records(sets)})


def read(content: RecordDict, sets: int) -> tuple[dict[str, bytes], ...]:
    return read_overrides(content, content["settings"], MANIFEST.to_bytes(), sets)


@settings(deadline=None)
@given(st.lists(overrides(), max_size=4))
def test_sets_come_back(sets: list[dict[str, bytes]]) -> None:
    assert read(message(sets), len(sets)) == tuple(sets)


def test_contents_that_sets_share_travel_once_and_low_bit_codes_are_small() -> None:
    location = max(SIZES, key=lambda name: SIZES[name] * (name != "channels"))
    codes = np.random.default_rng(0).integers(-2, 2, SIZES[location], np.int8).tobytes()
    content = message([{location: codes}, {}, {location: bytes(codes)}])
    (stored,) = content["override_blobs"].values()
    assert len(stored.data) < len(codes) / 2
    assert read(content, 3) == ({location: codes}, {}, {location: codes})


def first(content: RecordDict, digest: str, stored: bytes) -> None:
    """Put another blob in place of the only one."""
    content["override_blobs"] = ArrayRecord({digest: encode_bytes(stored)})


LOCATION = "channels"
CODES = bytes(SIZES[LOCATION])


def refused(content: RecordDict, sets: int = 1) -> None:
    with pytest.raises(MalformedError):
        read(content, sets)


def test_files_that_the_artifact_lacks_or_has_in_another_size_are_refused() -> None:
    refused(message([{"passwd": CODES}]))
    refused(message([{LOCATION: CODES + b"0"}]))
    refused(message([{LOCATION: CODES[:-1]}]))


def test_a_blob_that_is_not_its_digest_or_no_blob_is_refused() -> None:
    for digest, stored in (
        (content_digest(b"other"), encode_blob(CODES)),
        (content_digest(CODES), encode_blob(CODES)[:-1]),
        (content_digest(CODES), b""),
        ("x" * 64, encode_blob(CODES)),
        (content_digest(CODES), encode_blob(CODES)[:4] + b"\xff\xff\xff\x0f" + encode_blob(CODES)[8:]),
    ):
        content = message([{LOCATION: CODES}])
        first(content, digest, stored)
        refused(content)


@pytest.mark.parametrize(
    "table", [[0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, 0, 0, 0, 0, 0], [0, -1, 0]]
)
def test_tables_that_point_beyond_their_lists_or_twice_at_a_file_are_refused(table: list[int]) -> None:
    content = message([{LOCATION: CODES}])
    content["overrides"] = ArrayRecord({"table": encode_vector(np.array(table, np.int64))})
    refused(content)


@pytest.mark.parametrize("key", ["overrides", "override_blobs", "settings"])
def test_missing_records_are_refused(key: str) -> None:
    content = message([{LOCATION: CODES}])
    settings = ConfigRecord() if key == "settings" else content["settings"]
    content.pop(key)
    with pytest.raises(MalformedError):
        read_overrides(content, settings, MANIFEST.to_bytes(), 1)


def test_more_sets_than_there_are_come_back_empty() -> None:
    assert read(message([{LOCATION: CODES}]), 2) == ({LOCATION: CODES}, {})
