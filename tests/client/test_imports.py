"""A device has numpy, onnxruntime, protobuf and zstandard, and none of the server's libraries."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from artifacts import example

from client.state import StateFolder

ROOT = Path(__file__).parents[2]

SERVER_ONLY = (
    "alembic", "fsspec", "matplotlib", "onnx", "onnxscript", "prometheus_client", "ray", "scipy", "sklearn",
    "sqlalchemy", "structlog", "torch",
)  # fmt: skip

CORE_MODULES = (
    "affine", "arrays", "artifact", "assessment", "augmentation", "blob", "blob_ref", "calibration",
    "calibration_recipe", "delta", "device_class", "errors", "histogram", "im2col", "input_observation", "manifest",
    "moments", "observation", "packing", "policy", "renormalization", "second_moments", "self_testing", "sensitivity",
    "target_name", "training_settings", "training_state", "training_update",
)  # fmt: skip

CLIENT_MODULES = (
    "garbage", "memory", "observer", "profiler", "runtime", "sampler", "self_testing", "serving", "sessions", "spool",
    "state", "tap_observer", "trusted_metadata", "updater",
)  # fmt: skip

DEVICE_MODULES = (
    *(f"quantization.{name}" for name in CORE_MODULES),
    *(f"client.{name}" for name in CLIENT_MODULES),
)

AGENT_MODULES = tuple(
    f"client.{name}"
    for name in (
        "agent", "api", "background", "benching", "connection", "device_status", "events", "grpc_transport",
        "inference_service", "input_keeper", "install_attempts", "judging", "link", "local", "metered", "owned_device",
        "process_memory", "recent_samples", "renewal", "reporting", "running", "settings", "shadow", "showing",
        "telemetry", "tensors", "unix_socket", "update_worker",
    )
)  # fmt: skip

LAZY = ("cryptography", "flwr", "rich", "securesystemslib", "tuf", "typer")
"""What an agent imports only when it is needed: for signatures and certificates, and by the command."""

AGENT_SCRIPT = """
import importlib, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not on a device", name=name)

blocked, modules, folder = json.loads(sys.argv[1])
sys.meta_path.insert(0, Absent())
for module in modules:
    importlib.import_module(module)

import numpy as np
from client.api import Device, RemoteModel

with Device.open(folder, is_offline=True, device_class="x86-vnni", socket=folder + "/s") as device:
    with RemoteModel(folder + "/s") as model:
        assert model.infer(np.ones((9, 3, 12, 12), np.float32)).version == 1
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""

SCRIPT = """
import importlib, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not on a device", name=name)

blocked, modules, folder = json.loads(sys.argv[1])
sys.meta_path.insert(0, Absent())
for module in modules:
    importlib.import_module(module)

import numpy as np
from client.observer import Observer
from client.runtime import Runtime
from client.sampler import Sampler
from client.state import StateFolder

with StateFolder(folder) as state:
    manifest = state.read_manifest()
    sampler = Sampler((3, 12, 12))
    runtime = Runtime(manifest, state.read_blob, on_input=sampler.offer)
    runtime.infer(np.ones((9, 3, 12, 12), np.float32))
    runtime.swap(manifest, state.read_blob).result()
    observer = Observer(manifest, state.read_blob)
    seen = [observer.moments(sampler.inputs()), observer.ranges(sampler.inputs())]
    state.write_samples(sampler.to_bytes())
assert [observation.sample_count for observation in seen] == [9, 9]
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def run_as_device(python: str, state: Path, cwd: Path, script: str = SCRIPT) -> set[str]:
    """Load, infer, swap and observe in a process of its own; return the modules that it imported."""
    with StateFolder(state) as folder:
        artifact = example().artifact()
        for digest, stored in artifact.blobs.items():
            folder.store_blob(digest, stored)
        folder.write_manifest(artifact.manifest, 1)
    blocked, modules = (
        (SERVER_ONLY, DEVICE_MODULES) if script is SCRIPT else (SERVER_ONLY + LAZY, AGENT_MODULES)
    )
    argument = json.dumps([blocked, modules, str(state)])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", script, argument],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_a_device_works_without_the_servers_libraries(tmp_path: Path) -> None:
    imported = run_as_device(sys.executable, tmp_path / "state", ROOT)
    assert not imported & {*SERVER_ONLY, "flwr", "grpc"}
    assert imported >= {"numpy", "onnxruntime", "quantization", "client"}


def test_an_agent_that_goes_without_certificates_needs_no_library_for_them() -> None:
    with TemporaryDirectory(dir="/tmp") as short:  # a socket's path is short
        imported = run_as_device(sys.executable, Path(short) / "state", ROOT, AGENT_SCRIPT)
    assert not imported & {*SERVER_ONLY, *LAZY}
    assert imported >= {"numpy", "onnxruntime", "grpc", "client"}


@pytest.mark.slow
def test_a_device_works_where_only_the_client_extra_is_installed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=skipped)
    (source / "README.md").touch()
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-input", f"{source}[client]"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    names = {entry["name"].lower().replace("-", "_") for entry in json.loads(listed.stdout)}
    assert not names & {"torch", "onnx", "onnxscript", "scipy", "scikit_learn", "matplotlib", "fsspec"}
    imported = run_as_device(python, tmp_path / "state", tmp_path)
    assert not imported & set(SERVER_ONLY)
