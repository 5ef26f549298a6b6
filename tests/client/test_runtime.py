import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from artifacts import example
from onnx import TensorProto, helper

from client.runtime import Runtime
from client.sessions import open_session, run_session
from quantization.artifact import Artifact
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.errors import (
    DigestMismatchError,
    InvalidDataError,
    MalformedError,
    NotFoundError,
    QuantFleetError,
    UpdateRejectedError,
)


def runtime_of(artifact: Artifact, **options: Any) -> Runtime:
    return Runtime(artifact.manifest, artifact.blobs.__getitem__, **options)


def artifact_content(artifact: Artifact, digest: str) -> bytes:
    return decode_blob_content(artifact.blobs[digest], digest)


def inlined(artifact: Artifact) -> bytes:
    """Return the skeleton as one self-contained ONNX model, through the onnx package."""
    stage = artifact.manifest.stages[0]
    model = onnx.ModelProto.FromString(artifact_content(artifact, stage.skeleton.digest))
    files = {ref.location: artifact_content(artifact, ref.digest) for ref in stage.files}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            start = int(entries["offset"])
            tensor.raw_data = files[entries["location"]][start : start + int(entries["length"])]
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
    return model.SerializeToString()


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_inference_is_bit_equal_to_the_inline_model(name: str) -> None:
    artifact = example(name).artifact()
    x = example(name).inputs(5)
    session = ort.InferenceSession(inlined(artifact), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(runtime_of(artifact).infer(x), session.run(None, {"x": x})[0])


def test_logits_are_near_those_of_the_float_model() -> None:
    x = example().inputs(64)
    logits = runtime_of(example().artifact(width=6.0)).infer(x)
    wanted = ort.InferenceSession(example().model).run(None, {"x": x})[0]
    assert logits.dtype == np.float32
    assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.98


def test_inputs_of_other_numeric_types_are_converted() -> None:
    runtime = runtime_of(example().artifact())
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 12, 12))
    np.testing.assert_array_equal(runtime.infer(x), runtime.infer(x.astype(np.float32)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((2, 4, 12, 12), np.float32),
            r"takes inputs of shape \(n, 3, 12, 12\), not \(2, 4, 12, 12\)",
        ),
        (np.zeros((3, 12, 12), np.float32), "not \\(3, 12, 12\\)"),
        (np.zeros((0, 3, 12, 12), np.float32), "not \\(0, 3, 12, 12\\)"),
        (np.full((1, 3, 12, 12), np.nan, np.float32), "not finite"),
        (np.full((1, 3, 12, 12), np.inf, np.float32), "not finite"),
        (np.full((1, 3, 12, 12), 1e300), "not finite"),
        (np.full((1, 3, 12, 12), "a"), "float32 array"),
        (np.full((1, 3, 12, 12), None), "float32 array"),
        ("text", "not str"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(x: Any, message: str) -> None:
    with pytest.raises(InvalidDataError, match=message):
        runtime_of(example().artifact()).infer(x)


def test_the_hook_sees_what_was_inferred() -> None:
    seen: list[np.ndarray] = []
    runtime = runtime_of(example().artifact(), on_input=seen.append)
    x = example().inputs(3)
    runtime.infer(x)
    with pytest.raises(InvalidDataError):
        runtime.infer(x[:, :1])
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], x)


def test_swap_replaces_the_artifact() -> None:
    old, new = example().artifact(0), example().artifact(1, width=1.0)
    x = example().inputs(4)
    runtime = runtime_of(old)
    assert runtime.generation == 0
    runtime.swap(new.manifest, new.blobs.__getitem__).result(timeout=60)
    assert (runtime.generation, runtime.manifest) == (1, new.manifest)
    np.testing.assert_array_equal(runtime.infer(x), runtime_of(new).infer(x))


def test_inferences_during_swaps_each_run_wholly_on_the_old_or_the_new() -> None:
    artifacts = [example().artifact(g, width=4.0 / (g + 1)) for g in range(2)]
    x = example().inputs(4)
    wanted = [runtime_of(artifact).infer(x) for artifact in artifacts]
    assert not np.array_equal(*wanted)
    runtime = runtime_of(artifacts[0])
    done = threading.Event()

    def infer_all_the_time() -> list[np.ndarray]:
        outputs = []
        while not done.is_set():
            outputs.append(runtime.infer(x))
        return outputs

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(infer_all_the_time) for _ in range(3)]
        for swap in range(10):
            artifact = artifacts[(swap + 1) % 2]
            runtime.swap(artifact.manifest, artifact.blobs.__getitem__).result(timeout=60)
        done.set()
        outputs = [output for worker in workers for output in worker.result()]
    served = [sum(np.array_equal(output, logits) for output in outputs) for logits in wanted]
    assert sum(served) == len(outputs)
    assert min(served) > 0


def test_an_inference_in_flight_finishes_on_the_artifact_that_it_began_with() -> None:
    old, new = example().artifact(0), example().artifact(1, width=1.0)
    x = example().inputs(2)
    runtime = runtime_of(old)
    live = runtime._live

    class SlowSession:
        def run(self, *arguments: Any) -> Any:
            runtime.swap(new.manifest, new.blobs.__getitem__).result(timeout=60)
            return live.session.run(*arguments)

    runtime._live = replace(live, session=SlowSession())
    np.testing.assert_array_equal(runtime.infer(x), runtime_of(old).infer(x))
    assert runtime.generation == 1


def skeleton_of(model: onnx.ModelProto, base: Artifact) -> Artifact:
    """Return the artifact with another graph in place of its skeleton."""
    content = model.SerializeToString()
    stored = encode_blob(content)
    stage = base.manifest.stages[0]
    ref = replace(
        stage.skeleton, digest=content_digest(content), shape=(len(content),), stored_size_bytes=len(stored)
    )
    manifest = replace(base.manifest, stages=(replace(stage, skeleton=ref),))
    return Artifact(manifest, {**base.blobs, ref.digest: stored})


def identity_graph(initializer: TensorProto | None = None) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    second = "w" if initializer else "x"
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", second], ["y"])], "g", [x], [y], [initializer] if initializer else []
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def nan_graph(artifact: Artifact) -> onnx.ModelProto:
    """Return a graph with the artifact's input and output that gives NaN for zeros."""
    name = artifact.manifest.stages[0].outputs[0]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])
    y = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Div", ["x", "x"], [name])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def failing_updates() -> dict[str, tuple[Artifact, type[QuantFleetError], str]]:
    good = example().artifact(1)
    stage = good.manifest.stages[0]
    digest = next(ref.digest for ref in stage.files if ref.dtype == "int8")
    other = encode_blob(bytes(next(ref for ref in stage.files if ref.digest == digest).decoded_size_bytes))
    truncated = {**good.blobs, digest: good.blobs[digest][:-1]}

    def without_files(artifact: Artifact) -> Artifact:
        bare = replace(artifact.manifest.stages[0], files=())
        return Artifact(replace(artifact.manifest, stages=(bare,)), artifact.blobs)

    two = replace(good.manifest, stages=(stage, replace(stage, name="head")))
    return {
        "truncated blob": (Artifact(good.manifest, truncated), MalformedError, "header promises"),
        "other content": (
            Artifact(good.manifest, {**good.blobs, digest: other}),
            DigestMismatchError,
            "has content",
        ),
        "files missing": (without_files(good), UpdateRejectedError, "cannot load"),
        "no graph": (skeleton_of(onnx.ModelProto(), good), UpdateRejectedError, "cannot load"),
        "other input": (example("mlp").artifact(1), UpdateRejectedError, "the update takes"),
        "graph with other names": (skeleton_of(identity_graph(), good), UpdateRejectedError, "does not run"),
        "outputs that are not finite": (
            skeleton_of(nan_graph(good), good),
            UpdateRejectedError,
            "not finite",
        ),
        "two stages": (Artifact(two, good.blobs), UpdateRejectedError, "2 stages"),
    }


@pytest.mark.parametrize("case", failing_updates())
def test_an_update_that_fails_keeps_the_old_serving(case: str) -> None:
    update, error, message = failing_updates()[case]
    old = example().artifact(0)
    x = example().inputs(2)
    runtime = runtime_of(old)
    wanted = runtime.infer(x)
    future = runtime.swap(update.manifest, update.blobs.__getitem__)
    with pytest.raises(error, match=message) as caught:
        future.result(timeout=60)
    assert "\n" not in str(caught.value)
    assert runtime.generation == 0
    np.testing.assert_array_equal(runtime.infer(x), wanted)


def test_a_blob_that_cannot_be_read_keeps_the_old_serving() -> None:
    def lost(digest: str) -> bytes:
        raise NotFoundError(digest)

    runtime = runtime_of(example().artifact(0))
    with pytest.raises(NotFoundError):
        runtime.swap(example().artifact(1).manifest, lost).result(timeout=60)
    assert runtime.generation == 0


def test_the_first_artifact_is_checked_as_updates_are() -> None:
    good = example().artifact()
    with pytest.raises(UpdateRejectedError):
        runtime_of(skeleton_of(identity_graph(), good))


@pytest.mark.parametrize("files", [{}, {"other": b"1234"}], ids=["no files", "other files"])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_graph_cannot_read_files_of_the_device(
    files: dict[str, bytes], is_absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (
        ("location", str(secret) if is_absolute else "secret"),
        ("offset", "0"),
        ("length", "16"),
    ):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(UpdateRejectedError, match="cannot load"):
        open_session(identity_graph(tensor).SerializeToString(), files)


def test_errors_of_a_run_are_said_in_one_line() -> None:
    session = open_session(identity_graph().SerializeToString(), {})
    with pytest.raises(InvalidDataError, match="cannot run") as caught:
        run_session(session, ["y"], {"x": np.zeros((1, 5), np.float32)})
    assert "\n" not in str(caught.value)


def test_close_waits_for_swaps_and_keeps_serving() -> None:
    runtime = runtime_of(example().artifact(0))
    new = example().artifact(1)
    future = runtime.swap(new.manifest, new.blobs.__getitem__)
    runtime.close()
    assert future.done()
    assert runtime.infer(example().inputs(1)).shape == (1, 10)


def test_what_served_before_a_trial_serves_again_at_once() -> None:
    old, new = example().artifact(0), example().artifact(1, width=1.0)
    x = example().inputs(2)
    runtime = runtime_of(old)
    runtime.swap(new.manifest, new.blobs.__getitem__, is_trial=True).result(timeout=60)
    assert runtime.generation == 1
    runtime.revert()
    assert runtime.generation == 0
    np.testing.assert_array_equal(runtime.infer(x), runtime_of(old).infer(x))
    runtime.revert()
    assert runtime.generation == 0
    runtime.swap(new.manifest, new.blobs.__getitem__, is_trial=True).result(timeout=60)
    runtime.settle()
    runtime.revert()
    assert runtime.generation == 1


class BrokenSession:
    def __init__(self, outputs: np.ndarray | None) -> None:
        self.outputs = outputs

    def run(self, *_: Any) -> list[np.ndarray]:
        if self.outputs is None:
            raise RuntimeError("bad allocation")
        return [self.outputs]


@pytest.mark.parametrize(
    "outputs", [None, np.full((2, 10), np.inf, np.float32)], ids=["raises", "not finite"]
)
def test_where_an_artifact_on_trial_fails_what_served_before_steps_in(outputs: np.ndarray | None) -> None:
    old, new = example().artifact(0), example().artifact(1, width=1.0)
    x, told = example().inputs(2), []
    runtime = runtime_of(old, on_run=lambda manifest, run: told.append((manifest.generation, run.is_good)))
    wanted = runtime.infer(x)
    runtime.swap(new.manifest, new.blobs.__getitem__, is_trial=True).result(timeout=60)
    runtime._live = replace(runtime._live, session=BrokenSession(outputs))
    np.testing.assert_array_equal(runtime.infer(x), wanted)
    assert told == [(0, True), (1, False), (0, True)]
    runtime.settle()
    if outputs is None:
        with pytest.raises(InvalidDataError):
            runtime.infer(x)
    else:
        assert not np.isfinite(runtime.infer(x)).any()


def test_no_inference_fails_whenever_a_trial_is_left() -> None:
    """The trial ends in front of each instruction of an inference on an artifact that fails, one after another."""
    x, runtime = example().inputs(2), runtime_of(example().artifact(0))
    wanted, good = runtime.infer(x), runtime._live
    new = example().artifact(1, width=1.0)
    runtime.swap(new.manifest, new.blobs.__getitem__, is_trial=True).result(timeout=60)
    trial = replace(runtime._live, session=BrokenSession(None))
    before, moment, is_over = sys.gettrace(), 0, False
    while not is_over:
        runtime._live, left = trial, moment

        def follow(frame: Any, event: str, _argument: Any) -> Any:
            nonlocal left
            if frame.f_code is not Runtime.answer.__code__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left == -1:
                    runtime.revert()
            return follow

        sys.settrace(follow)
        try:
            answered = runtime.answer(x)
        finally:
            sys.settrace(before)
        np.testing.assert_array_equal(answered.output, wanted)
        assert answered.manifest is good.manifest
        is_over, moment = left >= 0, moment + 1
    assert moment > 20


def test_the_hook_is_told_how_long_a_run_took() -> None:
    told: list[float] = []
    runtime = runtime_of(example().artifact(), on_run=lambda _, run: told.append(run.seconds))
    with pytest.raises(InvalidDataError):
        runtime.infer(np.zeros((1, 1), np.float32))  # not a failure of the artifact
    runtime.infer(example().inputs(1))
    assert len(told) == 1
    assert 0.0 < told[0] < 60.0
