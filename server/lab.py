"""Generation 0: a model prepared in the lab, as every device class first runs it.

The lab runs the plain observation graph (the int8 weights dequantized, float activations) on its own inputs.
That gives the reference that the field's channel moments are compared with, and the histograms that the first
ranges come from. Both depend on the weight codes alone: classes with equal bit-widths share one measurement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnxruntime as ort

from quantization.arrays import AnyArray, FloatArray
from quantization.artifact import Artifact
from quantization.calibration import MeanSquaredError, RangeMethod
from quantization.compile import CompiledGraph
from quantization.compile_observation import compile_observation
from quantization.compile_taps import compile_taps, input_layout
from quantization.device_class import DeviceClass
from quantization.draft import first_line
from quantization.errors import ConfigurationError, InvalidDataError, UnsupportedModelError
from quantization.graph import GraphPlan, Layer, canonicalize
from quantization.im2col import sample_columns
from quantization.input_observation import COLUMNS_PER_BATCH
from quantization.moments import ChannelReference
from quantization.observation import RunFunction, batches, observe_ranges
from quantization.policy import Policy
from quantization.second_moments import exponent_for
from server.candidate import PlannedModel, check_budget, compile_artifact, store_artifact
from server.entries import Lab, Model
from server.folded import Blobs, LabInput, LabStatistics, write
from server.generation import Event, Generation, Step
from server.ranges import choose_ranges
from server.registry import Registry

BATCH_SIZE = 32
"""Lab inputs in one inference: as many as a device takes."""

LAB_INPUTS = 256
"""Lab inputs by which the size of layers' inputs is measured: it says what to count in, no more."""

ProgressFunction = Callable[[int, int], None]
"""Told how many of how many inputs were measured."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that devices can be given.

    Attributes:
        model: As registered.
        plan: Its layers, sites, and the operators that stay float, with the reason.
        artifacts: Generation 0 by name of the device class.
        generations: Generation 0 as registered, likewise.
        statistics: What the lab measured, likewise.
    """

    model: Model
    plan: GraphPlan
    artifacts: Mapping[str, Artifact]
    generations: Mapping[str, Generation]
    statistics: Mapping[str, LabStatistics]


def prepare_model(
    model: bytes,
    lab_inputs: FloatArray,
    *,
    name: str,
    device_classes: Sequence[DeviceClass],
    registry: Registry,
    blobs: Blobs,
    range_method: RangeMethod = MeanSquaredError(),  # noqa: B008  # frozen
    on_progress: ProgressFunction | None = None,
) -> PreparedModel:
    """Register a float model and publish generation 0 for each class; done twice, it changes nothing.

    Args:
        model: fp32 ONNX bytes with a dynamic batch.
        lab_inputs: Calibration inputs as the model takes them, shape (N, ...), N >= 1; no labels needed.
        name: What operators call the model.
        device_classes: At least one.
        registry: Gets the facts.
        blobs: Gets the content.
        range_method: Chooses ranges now and, as part of the policy, in every later generation.
        on_progress: Called after each batch.

    Raises:
        UnsupportedModelError: The model cannot be quantized.
        InvalidDataError: The inputs do not fit the model.
        ConfigurationError: No device class is given, or the artifact is too large for one.
    """
    if not device_classes:
        raise ConfigurationError("a model needs at least one device class to be prepared for")
    planned = PlannedModel.of(canonicalize(model))
    inputs = _checked_inputs(lab_inputs, planned.plan)
    write(blobs, planned.content)
    registered = registry.add_model(Model(planned.digest, name, len(planned.content)))
    measured: dict[int, LabStatistics] = {}
    artifacts, generations, statistics = {}, {}, {}
    for device_class in device_classes:
        registry.add_device_class(device_class)
        policy, bits = _lab_policy(planned, device_class, range_method), device_class.max_weight_bits
        if bits not in measured:
            measured[bits] = measure(planned, policy, inputs, on_progress)
        found = statistics[device_class.name] = measured[bits]
        policy = replace(policy, ranges=choose_ranges(planned.plan, found.histograms, range_method))
        artifact = artifacts[device_class.name] = compile_artifact(planned, policy, found.references)
        check_budget(artifact, device_class)
        lab = Lab(planned.digest, device_class.name, write(blobs, found.to_bytes()), len(inputs))
        generations[device_class.name] = _publish(registry, blobs, lab, policy, artifact)
    return PreparedModel(registered, planned.plan, artifacts, generations, statistics)


def measure(
    model: PlannedModel, policy: Policy, inputs: FloatArray, on_progress: ProgressFunction | None = None
) -> LabStatistics:
    """Return references and histograms of all inputs, of the model with the policy's weights.

    Args:
        model: The model.
        policy: Its bit-widths and corrections are used, its ranges are not.
        inputs: Shape (N, ...), float32.
        on_progress: Called after each batch.
    """
    graphs = compile_observation(model.content, model.plan, policy, None)
    run = open_session(graphs.plain)
    pool = _MomentsPool(model.plan.corrected_layers)
    sites = [site.name for site in model.plan.sites]
    done = 0

    def run_and_pool(batch: FloatArray) -> Mapping[str, AnyArray]:
        nonlocal done
        outputs = run(batch)
        pool.add(outputs)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(inputs))
        return outputs

    histograms = observe_ranges(run_and_pool, inputs, sites, BATCH_SIZE)
    references = pool.references()
    unseen = next((site for site, histogram in histograms.items() if histogram.count == 0), None)
    if unseen is not None:
        raise InvalidDataError(
            f"tensor {unseen} has no finite value on the lab's inputs; check their scale and the model's weights"
        )
    return LabStatistics(references, histograms, measure_inputs(model, graphs.plain, inputs[:LAB_INPUTS]))


def measure_inputs(model: PlannedModel, plain: CompiledGraph, inputs: FloatArray) -> dict[str, LabInput]:
    """Return how large the input of every layer is.

    Args:
        model: The model.
        plain: Its plain observation graph, whose files are used.
        inputs: Shape (N, ...), float32; a few hundred are enough.
    """
    run = open_session(CompiledGraph(compile_taps(model.content, model.plan), plain.files))
    layout = input_layout(model.content, model.plan)
    squares: dict[str, FloatArray] = {}
    counts: dict[str, int] = {}
    for batch in batches(inputs, BATCH_SIZE):
        tensors = {**run(batch), model.plan.input_name: batch}
        for layer in layout:
            columns = sample_columns(tensors[layer.tensor], layer.window, COLUMNS_PER_BATCH)
            total = np.square(columns, dtype=np.float64).sum(1)
            squares[layer.name] = squares.get(layer.name, 0.0) + total
            counts[layer.name] = counts.get(layer.name, 0) + columns.shape[1]
    means = {name: square / counts[name] for name, square in squares.items()}
    return {name: LabInput(exponent_for(float(m.max())), float(m.sum())) for name, m in means.items()}


def open_session(graph: CompiledGraph) -> RunFunction:
    """Return a function that runs a compiled graph in ONNX Runtime, on one thread.

    Raises:
        UnsupportedModelError: If ONNX Runtime cannot load the graph; the function, if it cannot run it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    options.add_session_config_entry(
        "session.qdq_matmulnbits_accuracy_level", "1"
    )  # float32, as devices observe
    contents = [np.ascontiguousarray(array).tobytes() for array in graph.files.values()]
    options.add_external_initializers_from_files_in_memory(
        list(graph.files), contents, [len(content) for content in contents]
    )
    try:
        session = ort.InferenceSession(graph.skeleton, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise UnsupportedModelError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error
    input_name = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]

    def run(batch: FloatArray) -> Mapping[str, AnyArray]:
        try:
            outputs = session.run(names, {input_name: batch})
        except Exception as error:
            raise UnsupportedModelError(
                f"ONNX Runtime cannot run the model on inputs of shape {batch.shape}: {first_line(error)}"
            ) from error
        return dict(zip(names, outputs, strict=True))

    return run


@dataclass(slots=True)
class _MomentsPool:
    """Sums of a layer's batches: float64, in the layer's own units."""

    layers: Sequence[Layer]
    counts: dict[str, int] = field(default_factory=dict)
    totals: dict[str, FloatArray] = field(default_factory=dict)
    squares: dict[str, FloatArray] = field(default_factory=dict)

    def add(self, outputs: Mapping[str, AnyArray]) -> None:
        """Add the moments of one batch, as the plain observation graph outputs them."""
        for layer in self.layers:
            mean = outputs[f"mean:{layer.name}"].astype(np.float64)
            variance = outputs[f"var:{layer.name}"].astype(np.float64)
            count = int(outputs[f"count:{layer.name}"])
            self.counts[layer.name] = self.counts.get(layer.name, 0) + count
            self.totals[layer.name] = self.totals.get(layer.name, 0.0) + count * mean
            self.squares[layer.name] = self.squares.get(layer.name, 0.0) + count * (variance + mean**2)

    def references(self) -> dict[str, ChannelReference]:
        """Return the pooled moments."""
        references = {}
        for name, count in self.counts.items():
            mean = self.totals[name] / count
            variance = self.squares[name] / count - mean**2
            if not np.isfinite(variance).all():
                raise InvalidDataError(
                    f"layer {name} gives values that are not finite, or too large for float32, on the lab's inputs; "
                    "check their scale and the model's weights"
                )
            references[name] = ChannelReference.from_moments(mean, variance, count)
        return references


def _checked_inputs(inputs: FloatArray, plan: GraphPlan) -> FloatArray:
    expected = tuple(plan.input_shape)
    shape = np.shape(inputs)
    fits = len(shape) == len(expected) and all(
        wanted in (None, actual) for wanted, actual in zip(expected[1:], shape[1:], strict=True)
    )
    if not fits or shape[0] == 0:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise InvalidDataError(f"lab inputs have shape {shape}; the model takes ({wanted}), 1 row or more")
    array = np.ascontiguousarray(inputs, np.float32)
    if not np.isfinite(array).all():
        raise InvalidDataError("lab inputs hold NaN or infinities; remove those rows")
    return array


def _lab_policy(model: PlannedModel, device_class: DeviceClass, method: RangeMethod) -> Policy:
    """Return generation 0's policy, without the ranges that are still to be measured."""
    return Policy(
        model_digest=model.digest,
        device_class=device_class.name,
        generation=0,
        ranges={},
        bit_widths={layer.name: device_class.max_weight_bits for layer in model.plan.layers},
        corrections={},
        range_method=str(method),
    )


def _publish(registry: Registry, blobs: Blobs, lab: Lab, policy: Policy, artifact: Artifact) -> Generation:
    """Store the artifact and register it as generation 0, unless that has been done."""
    known = registry.generations(lab.model_digest, lab.device_class)
    if known and not known[0].is_open:
        return _same(known[0], policy)
    manifest_digest = store_artifact(blobs, artifact)
    registry.add_lab(lab)
    started = known[0] if known else registry.start_generation(lab.model_digest, lab.device_class)
    result = replace(
        started,
        policy=policy.to_json_bytes().decode(),
        manifest_digest=manifest_digest,
        size_bytes=artifact.size_bytes,
        update_bytes=artifact.size_bytes,
        reason="calibrated in the lab",
    )
    return registry.advance(result, Event.LAB_CALIBRATED)


def _same(published: Generation, policy: Policy) -> Generation:
    """Return generation 0 as it was published, if it is the one that was made again."""
    if published.step is not Step.PUBLISHED or published.policy != policy.to_json_bytes().decode():
        raise ConfigurationError(
            f"model {published.model_digest[:12]} was prepared for '{published.device_class}' from other "
            "inputs or with another range method; use a new registry to start again"
        )
    return published
