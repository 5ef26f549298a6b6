"""Folded statistics as blobs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.blob import content_digest, encode_blob
from quantization.errors import DigestMismatchError, MalformedError
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments, ChannelReference
from server.blob_store import BlobStore
from server.folded import FieldMoments, FieldRanges, LabStatistics, read, write


def reference() -> ChannelReference:
    return ChannelReference(np.array([0.1, -2.0]), np.array([1.5, 1e-9]), 640)


def moments(shift: float) -> ChannelMoments:
    return ChannelMoments.from_batch(np.array([shift, 1.0]), np.array([1.0, 2.0]), 32, reference_of_ones())


def reference_of_ones() -> ChannelReference:
    return ChannelReference(np.zeros(2), np.ones(2), 1)


NAMES = ["/layer1/conv", "a/b/c", "../outside", "name with spaces", "x.npy", "file"]


def test_lab_statistics_come_back_exactly_whatever_the_names() -> None:
    histograms = {name: DyadicHistogram.from_values(np.arange(i + 1.0)) for i, name in enumerate(NAMES)}
    back = LabStatistics.from_bytes(LabStatistics(dict.fromkeys(NAMES, reference()), histograms).to_bytes())
    assert back.histograms == histograms
    assert set(back.references) == set(NAMES)
    for found in back.references.values():
        assert np.array_equal(found.mean, reference().mean)
        assert np.array_equal(found.std, reference().std)
        assert found.count == 640


@given(st.floats(-100, 100))
def test_field_statistics_come_back_exactly(shift: float) -> None:
    first = FieldMoments({"conv": moments(shift)}, {"conv": moments(-shift), "fc": moments(0.0)})
    assert FieldMoments.from_bytes(first.to_bytes()) == first
    second = FieldRanges({"x": DyadicHistogram.from_values([shift, 1.0])}, {"conv": moments(shift)})
    assert FieldRanges.from_bytes(second.to_bytes()) == second


def test_equal_statistics_give_equal_bytes_in_any_order() -> None:
    a, b = moments(1.0), moments(2.0)
    one = FieldMoments({"a": a, "b": b}, {}).to_bytes()
    assert one == FieldMoments({"b": b, "a": a}, {}).to_bytes()


@pytest.mark.parametrize(
    "data", [b"", b"not an archive", FieldMoments({"a": moments(1.0)}, {}).to_bytes()[:-30]]
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError, match="archive of arrays"):
        FieldMoments.from_bytes(data)


def test_content_is_stored_under_its_digest_and_read_back(blobs: BlobStore) -> None:
    digest = write(blobs, b"content")
    assert write(blobs, b"content") == digest == content_digest(b"content")
    assert read(blobs, digest) == b"content"


class LyingBlobs:
    """A store that returns other content than it is asked for."""

    def put(self, digest: str, stored: bytes) -> None:
        pass

    def get(self, digest: str) -> bytes:
        return encode_blob(b"not " + digest.encode())

    def has(self, digest: str) -> bool:
        return bool(digest)


def test_content_that_is_not_what_its_name_says_is_refused() -> None:
    with pytest.raises(DigestMismatchError):
        read(LyingBlobs(), content_digest(b"content"))
