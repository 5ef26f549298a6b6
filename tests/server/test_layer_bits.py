"""Tests of bits by group of layers."""

from pathlib import Path

import artifacts
import pytest

from quantization.blob import content_digest, encode_blob
from quantization.errors import MalformedError, NotFoundError
from server.blob_store import BlobStore
from server.layer_bits import bits_by_layer, mean_bits_by_group, node_order


@pytest.mark.parametrize("name", ["residual_cnn", "transformer"])
def test_layers_come_in_the_order_in_which_they_run(tmp_path: Path, name: str) -> None:
    example = artifacts.example(name)
    artifact = example.artifact()
    blobs = BlobStore(tmp_path)
    for digest, stored in artifact.blobs.items():
        blobs.put(digest, stored)
    manifest = artifact.manifest.to_bytes()
    digest = content_digest(manifest)
    with pytest.raises(NotFoundError):
        node_order(blobs, digest)
    blobs.put(digest, encode_blob(manifest))
    layers = [layer.name for layer in example.plan.layers]
    assert [node for node in node_order(blobs, digest) if node in layers] == layers
    assert layers != sorted(layers)


def test_groups_are_the_first_layer_the_last_one_and_all_between() -> None:
    bits = {"Conv_10": 2, "Conv_2": 8, "Gemm_1": 6, "Conv_3": 4}
    order = ("Conv_2", "Relu_9", "Conv_3", "Conv_10", "Gemm_1")
    assert mean_bits_by_group(bits, order) == {"first": 8.0, "middle": 3.0, "last": 6.0}
    assert mean_bits_by_group({"a": 4}, ("a",)) == {"first": 4.0}
    assert mean_bits_by_group({"a": 4, "b": 8}, ("a", "b")) == {"first": 4.0, "last": 8.0}
    assert mean_bits_by_group({}, ()) == {}


def test_a_layer_in_float_takes_16_bits() -> None:
    text = '{"bit_widths": {"a": 4, "b": 8}, "float_layers": {"b": "fp16"}}'
    assert bits_by_layer(text) == {"a": 4, "b": 16}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bit_widths": 3}', '{"bit_widths": {"a": "x"}}'])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(MalformedError, match="not a policy"):
        bits_by_layer(text)
