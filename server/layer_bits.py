"""How many bits the weights of a published policy take, by where its layers lie in the model."""

import json
from collections.abc import Mapping, Sequence

import onnx

from quantization.artifact import decode_blob
from quantization.blob import decode_blob_content
from quantization.errors import MalformedError
from quantization.manifest import Manifest
from server.blob_store import BlobStore

LAYER_GROUPS = ("first", "middle", "last")
"""The model's first layer, its last one, and all between: what allocation treats most differently."""

_FLOAT_BITS = 16


def bits_by_layer(policy_json: str) -> dict[str, int]:
    """Return bits per weight by layer; a layer that is stored in float has 16.

    Raises:
        MalformedError: If the text is not a policy's JSON.
    """
    try:
        record = json.loads(policy_json)
        bits = {str(layer): int(width) for layer, width in record["bit_widths"].items()}
        return bits | dict.fromkeys(record.get("float_layers", {}), _FLOAT_BITS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedError(f"not a policy: {error}") from error


def node_order(blobs: BlobStore, manifest_digest: str) -> tuple[str, ...]:
    """Return the names of an artifact's nodes as they run, stage by stage; layers are among them.

    Raises:
        NotFoundError: If the store lacks the manifest or a skeleton.
        MalformedError: If one of them is not what it must be.
        DigestMismatchError: If one is damaged.
    """
    manifest = Manifest.from_bytes(decode_blob_content(blobs.get(manifest_digest), manifest_digest))
    names: list[str] = []
    for stage in manifest.stages:
        skeleton = decode_blob(stage.skeleton, blobs.get(stage.skeleton.digest))
        names += (node.name for node in onnx.load_from_string(skeleton).graph.node)
    return tuple(names)


def mean_bits_by_group(bits: Mapping[str, int], order: Sequence[str]) -> dict[str, float]:
    """Return the mean over layers of bits per weight, by group; a group without layers is left out.

    Args:
        bits: By layer.
        order: Names in which layers lie as they run; a layer that is not among them is in no group.
    """
    layers = [name for name in order if name in bits]
    members = {"first": layers[:1], "middle": layers[1:-1], "last": layers[1:][-1:]}
    return {
        group: sum(bits[name] for name in names) / len(names) for group, names in members.items() if names
    }
