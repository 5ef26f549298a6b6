import json
from pathlib import Path

import models
import pytest
from artifacts import example

from client.profiler import kernel_times, profile_layers
from quantization.errors import ConfigurationError, MalformedError

LAYERS = {"Conv_0": "conv_0", "fc": "fc_out"}


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_every_layer_is_found_in_the_profiles_of_both_graphs(name: str) -> None:
    case = example(name)
    artifact = case.artifact()
    layers = {layer.name: layer.raw_output for layer in case.plan.layers}
    for times in profile_layers(artifact.manifest, artifact.blobs.__getitem__, layers, 2):
        assert times.keys() == layers.keys()
        assert all(runs == 2 and nanoseconds > 0 for nanoseconds, runs in times.values())


def test_an_artifact_without_a_float_graph_is_refused() -> None:
    bare = example("mlp").artifact(is_observed=False)
    with pytest.raises(ConfigurationError):
        profile_layers(bare.manifest, bare.blobs.__getitem__, {}, 1)


def write(folder: Path, events: object) -> Path:
    path = folder / "profile.json"
    path.write_text(events if isinstance(events, str) else json.dumps(events))
    return path


def event(name: str, microseconds: int, category: str = "Node") -> dict:
    return {"cat": category, "name": name, "dur": microseconds}


def test_the_last_runs_of_a_node_count_under_whatever_name_the_runtime_gave_it(tmp_path: Path) -> None:
    events = [
        event("Conv_0_token_12_kernel_time", 900),  # a run that warms up
        event("fc_kernel_time", 900),
        *[event("Conv_0_token_12_kernel_time", 3), event("fc_kernel_time", 5)] * 2,
        event("Conv_0_token_12_fence_before", 7),
        event("Conv_0x_token_12_kernel_time", 7),
        event("other_kernel_time", 7),
        event("fc_kernel_time", 7, "Session"),
    ]
    assert kernel_times(write(tmp_path, events), LAYERS, 2) == {"Conv_0": (6000, 2), "fc": (10_000, 2)}
    moved = [event("conv_0_nchwc_kernel_time", 4)]
    assert kernel_times(write(tmp_path, moved), LAYERS, 1) == {"Conv_0": (4000, 1)}


def test_a_layer_with_too_few_runs_is_left_out(tmp_path: Path) -> None:
    assert kernel_times(write(tmp_path, [event("fc_kernel_time", 3)]), LAYERS, 2) == {}


@pytest.mark.parametrize(
    "content", ["", "{", '"text"', "[1]", '[{"cat": "Node"}]', '[{"cat": "Node", "name": 3, "dur": "x"}]']
)
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(MalformedError):
        kernel_times(write(tmp_path, content), LAYERS, 1)
