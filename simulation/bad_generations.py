"""Artifacts that no fleet should run, made from one that it runs: what canaries are for.

All but the one that does not load pass the self-test that they carry, as a bad generation of a real tuner would: the
test says that the device computes what the artifact means, not that it means anything.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quantization.artifact import Artifact, build_artifact
from quantization.blob import content_digest, encode_blob
from quantization.calibration import Range
from quantization.compile import CompiledGraph, compile_inference
from quantization.compile_observation import compile_observation
from quantization.errors import ConfigurationError
from quantization.layer_codes import RoundedWeights
from quantization.moments import ChannelReference
from quantization.policy import Policy
from server.candidate import PlannedModel, compile_artifact
from server.self_testing import make_self_test

BAD_KINDS: Mapping[str, str] = {
    "destroyed-ranges": "activation ranges are a fiftieth of what they should be",
    "two-bits": "every weight has two bits, rounded to nearest",
    "slow": "the graph does more than ten times the work",
    "does-not-load": "the graph is none",
}
"""What can be wrong, and what it is."""

_SHRUNK = 0.02
_WIDTH = 256  # of the matrices that a slow graph multiplies
_PRODUCTS = 48  # of them: some 1.6 GFLOP, 20 to 60 ms on one core


def bad_artifact(
    kind: str,
    model: PlannedModel,
    policy: Policy,
    references: Mapping[str, ChannelReference],
    rounded: RoundedWeights,
) -> Artifact:
    """Return an artifact of a bad generation, the one after the policy's.

    Args:
        kind: One of `BAD_KINDS`.
        model: The float model.
        policy: Of what the fleet runs.
        references: The lab's moments by layer.
        rounded: What the policy's `weights_digest` names.

    Raises:
        ConfigurationError: There is no such kind.
    """
    next_policy = replace(policy, generation=policy.generation + 1)
    if kind == "destroyed-ranges":
        ranges = {site: Range(r.lo * _SHRUNK, r.hi * _SHRUNK) for site, r in policy.ranges.items()}
        return compile_artifact(model, replace(next_policy, ranges=ranges), references, rounded)
    if kind == "two-bits":
        bits = dict.fromkeys(policy.bit_widths, 2)
        rough = replace(next_policy, bit_widths=bits, weights_digest="", float_layers={})
        return compile_artifact(model, rough, references)
    if kind == "slow":
        return _slow(model, next_policy, references, rounded)
    if kind == "does-not-load":
        return _without_graph(compile_artifact(model, next_policy, references, rounded))
    raise ConfigurationError(f"bad generation {kind!r} is unknown; known are {', '.join(BAD_KINDS)}")


def _slow(
    model: PlannedModel,
    policy: Policy,
    references: Mapping[str, ChannelReference],
    rounded: RoundedWeights,
) -> Artifact:
    inference = compile_inference(model.content, model.plan, policy, rounded)
    observation = compile_observation(model.content, model.plan, policy, references, rounded)
    self_test = make_self_test(inference, model.plan, policy.model_digest)
    return build_artifact(_slowed(inference), observation, policy, model.plan, self_test.to_content())


def _slowed(compiled: CompiledGraph) -> CompiledGraph:
    """Return a graph with the same outputs that multiplies large matrices on the way.

    The matrices are zeros that depend on the input, so that nothing of it can be worked out beforehand.
    """
    graph = onnx.load_model_from_string(compiled.skeleton)
    output = graph.graph.output[0].name
    for node in graph.graph.node:
        node.output[:] = [f"{name}:fast" if name == output else name for name in node.output]
        node.input[:] = [f"{name}:fast" if name == output else name for name in node.input]
    shape = numpy_helper.from_array(np.array([_WIDTH, _WIDTH], np.int64), "slow:shape")
    zero = numpy_helper.from_array(np.array(0.0, np.float32), "slow:zero")
    graph.graph.initializer.extend([shape, zero])
    nodes = [
        helper.make_node("ReduceMax", [graph.graph.input[0].name], ["slow:max"], keepdims=0),
        helper.make_node("Mul", ["slow:max", "slow:zero"], ["slow:nothing"]),
        helper.make_node("Expand", ["slow:nothing", "slow:shape"], ["slow:0"]),
    ]
    nodes += [
        helper.make_node("MatMul", [f"slow:{step}", "slow:0"], [f"slow:{step + 1}"])
        for step in range(_PRODUCTS)
    ]
    nodes += [
        helper.make_node("ReduceMax", [f"slow:{_PRODUCTS}"], ["slow:end"], keepdims=0),
        helper.make_node("Add", [f"{output}:fast", "slow:end"], [output]),
    ]
    graph.graph.node.extend(nodes)
    return CompiledGraph(graph.SerializeToString(deterministic=True), compiled.files)


def _without_graph(artifact: Artifact) -> Artifact:
    """Return an artifact whose graph is a text."""
    content = b"not a graph"
    stored, digest = encode_blob(content), content_digest(content)
    stage = artifact.manifest.stages[0]
    skeleton = replace(stage.skeleton, digest=digest, shape=(len(content),), stored_size_bytes=len(stored))
    manifest = replace(artifact.manifest, stages=(replace(stage, skeleton=skeleton),))
    blobs = {name: blob for name, blob in artifact.blobs.items() if name in manifest.blobs}
    return Artifact(manifest, {**blobs, digest: stored})
