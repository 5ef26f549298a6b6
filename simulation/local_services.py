"""A whole fleet's processes on one machine: server, SuperLink, SuperNodes, agents, tuner, Prometheus, applications."""

import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantization.enrolment_token import EnrolmentToken
from quantization.errors import UnreachableError
from server.home_folder import HomeFolder
from server.identity_registry import IdentityRegistry
from simulation.child_processes import Child, ChildProcesses, free_port
from simulation.fleet_load import Application, LoadOrder
from simulation.local_prometheus import LocalPrometheus

_START_SECONDS = 120.0
_COMMAND_SECONDS = 120.0
_PYTHON = sys.executable

SERVER_TOML = """\
[server]
review_seconds = 0.5
grace_seconds = 1.0

[plan]
shares = [0.1, 0.6]
canaries = 3

# A dozen devices cannot show that a version is not two points worse: no alarm for a while is enough.
[rollout]
needs_proof = false
step_seconds = 15.0
stall_seconds = 600.0
unit_samples = 60
least_units = 2
enough_labelled = 2

[telemetry]
report_seconds = 2.0
"""

TUNER_TOML = """\
[tuner]
look-seconds = 1.0
flower-seconds = 2.0
drift-seconds = 2.0
window-samples = 300
beginning-windows = 2
pause-seconds = 3600

[tuner.run]
expected-nodes = {nodes}
wait-seconds = 60.0
poll-seconds = 0.2
deadline-seconds = 120.0
"""

CLIENT_TOML = """\
[device]
class = "{device_class}"
model_digest = "{model_digest}"

[trial]
least_seconds = 2.0
least_runs = 5
latency_ratio = 8.0

[sample]
rate = 1.0
max_bytes = 65536
write_seconds = 3.0

[report]
interval_seconds = 2.0

[judge]
wait_seconds = 5.0

[pace]
first_backoff_seconds = 0.5
longest_spread_seconds = 2.0
"""


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """One device's agent.

    Attributes:
        name: Of the device.
        state: Its state folder.
        socket: Where its applications reach it.
        metrics_address: Where Prometheus does.
    """

    name: str
    state: Path
    socket: str
    metrics_address: str


class LocalServices:
    """Starts what a fleet consists of, in order; `children` ends it.

    Attributes:
        home: The server's folder.
        registry_url: Of the registry.
        address: Of the server, once it runs.
        metrics_address: Likewise, for Prometheus.
        superlink_address: Of the SuperLink, once it runs.
    """

    def __init__(self, children: ChildProcesses, folder: Path, registry_url: str, nodes: int) -> None:
        """Write settings to folders in a folder of one's own, whose path must be short."""
        self.home, self.registry_url = (
            folder / "server",
            registry_url or f"sqlite:///{folder}/server/registry.db",
        )
        self.address = self.enrolment_address = self.metrics_address = self.superlink_address = ""
        self._children, self._folder = children, folder
        self._environment = _environment(folder)
        self.home.mkdir()
        (self.home / "server.toml").write_text(
            SERVER_TOML.replace("[server]\n", f'[server]\nregistry_url = "{self.registry_url}"\n')
        )
        (self.home / "tuner.toml").write_text(TUNER_TOML.format(nodes=nodes))

    def server_command(self, *arguments: str) -> list[str]:
        """Return a `quantfleet-server` command on this fleet's home folder."""
        return [_PYTHON, "-m", "server.cli", *arguments, f"--home={self.home}"]

    def run(self, name: str, command: Sequence[str]) -> str:
        """Return what a command prints, once it has ended well.

        Raises:
            UnreachableError: It failed, or took too long.
        """
        child = self._children.start(name, command, environment=self._environment)
        return self._children.finish(child, _COMMAND_SECONDS)

    def ask(self, *arguments: str) -> str:
        """Return what a `quantfleet-server` command that goes to the server prints."""
        return self.run("operator", [*self.server_command(*arguments), f"--server={self.address}"])

    def make_keys(self) -> Child:
        """Begin to make keys and certificates; `finish` the child before the server starts."""
        return self._children.start(
            "keys", self.server_command("keys", "init", "--host=127.0.0.1"), environment=self._environment
        )

    def finish(self, child: Child) -> str:
        """Wait for a command that was begun; return what it prints."""
        return self._children.finish(child, _COMMAND_SECONDS)

    def start_server(self) -> None:
        """Start the server, and wait for it."""
        addresses = [f"--{name}=127.0.0.1:0" for name in ("address", "enrolment-address", "metrics-address")]
        child = self._children.start(
            "server", [*self.server_command("serve", "--verbose"), *addresses], environment=self._environment
        )
        ready = json.loads(child.first_line(_START_SECONDS))
        self.address, self.metrics_address = ready["address"], ready["metrics_address"]
        self.enrolment_address = ready["enrolment_address"]

    def start_superlink(self) -> None:
        """Start the SuperLink; `wait_for_superlink` waits for it."""
        port = free_port()
        self.superlink_address = f"127.0.0.1:{port}"
        command = [_beside_python("flower-superlink"), "--insecure", "--host=127.0.0.1", f"--port={port}"]
        self._start_flower("superlink", command)

    def wait_for_superlink(self) -> None:
        """Wait until the SuperLink answers.

        Raises:
            UnreachableError: It does not.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://{self.superlink_address}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise UnreachableError("the SuperLink did not start")

    def start_nodes(self, agents: Sequence[LocalAgent], device_class: str) -> None:
        """Start a SuperNode beside each of these agents."""
        for agent in agents:
            config = f'device-source="state" state-folder="{agent.state}" device-class="{device_class}"'
            command = [
                _beside_python("flower-supernode"),
                "--insecure",
                f"--superlink={self.superlink_address}",
                f"--port={free_port()}",
                f"--node-config={config}",
            ]
            self._start_flower(f"supernode-{agent.name}", command)

    def start_agents(self, names: Sequence[str], model_digest: str, device_class: str) -> list[LocalAgent]:
        """Enrol devices with one-time tokens, start their agents, and wait for them."""
        config = self._folder / "client.toml"
        config.write_text(CLIENT_TOML.format(device_class=device_class, model_digest=model_digest))
        fingerprint = HomeFolder(self.home).pki().authority().fingerprint
        client = [_PYTHON, "-m", "client.cli"]
        enrolments = []
        with IdentityRegistry.open(self.registry_url) as registry:
            for name in names:
                made = registry.new_token(valid_seconds=3600, actor="make fleet", device=name)
                token = EnrolmentToken(made.secret, fingerprint).text
                command = [*client, "enroll", "--state", str(self._state(name)), "--token", "-", "--server"]
                child = self._children.start(
                    f"enroll-{name}", [*command, self.enrolment_address], environment=self._environment
                )
                child.write_line(token)
                enrolments.append(child)
        for child in enrolments:
            self.finish(child)
        running = []
        for name in names:
            command = [*client, "run", "--state", str(self._state(name)), "--config", str(config)]
            child = self._children.start(
                f"agent-{name}",
                [*command, "--metrics-address=127.0.0.1:0"],
                environment=self._environment,
            )
            running.append(child)
        agents = []
        for name, child in zip(names, running, strict=True):
            ready = json.loads(child.first_line(_START_SECONDS))
            agents.append(LocalAgent(name, self._state(name), ready["socket"], ready["metrics_address"]))
        return agents

    def start_tuner(self) -> Child:
        """Start the tuner, and wait for it."""
        command = self.server_command("tune", f"--superlink-address={self.superlink_address}")
        child = self._children.start("tuner", command, environment=self._environment)
        child.first_line(_START_SECONDS)
        return child

    def start_prometheus(self, agents: Sequence[LocalAgent]) -> LocalPrometheus:
        """Start a Prometheus that scrapes the server and all agents."""
        targets = {
            "quantfleet-server": [self.metrics_address],
            "quantfleet-client": [agent.metrics_address for agent in agents],
        }
        return LocalPrometheus.start(self._children, self._folder / "prometheus", targets, 2)

    def start_load(
        self, agents: Sequence[LocalAgent], inputs: Mapping[str, Path], calls_per_second: float, batch: int
    ) -> Child:
        """Start the devices' applications."""
        applications = [Application(agent.name, agent.socket, str(inputs[agent.name])) for agent in agents]
        command = [_PYTHON, "-m", "simulation.fleet_load"]
        child = self._children.start("applications", command, environment=self._environment)
        child.write_line(LoadOrder(applications, calls_per_second, batch, batch // 2).to_line())
        return child

    def _state(self, name: str) -> Path:
        return self._folder / name

    def _start_flower(self, name: str, command: Sequence[str]) -> None:
        folder = self._folder / "flower" / name
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**self._environment, "FLWR_HOME": str(folder)}
        self._children.start(name, command, environment=environment, is_heard=False, folder=folder)


def _beside_python(name: str) -> str:
    """Return a command of the environment that this Python is of."""
    return str(Path(sys.executable).with_name(name))


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment with this Python's commands and nothing of the user's Flower."""
    kept = {name: value for name, value in os.environ.items() if not re.match("FLWR_|QUANTFLEET_TOKEN", name)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return kept | {
        "PATH": path,
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "118",
        "NO_COLOR": "1",
    }
