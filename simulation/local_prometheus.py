"""A Prometheus of one's own, and what it is asked."""

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

from quantization.errors import ConfigurationError, UnreachableError
from simulation.child_processes import ChildProcesses, free_port

_START_SECONDS = 30.0


class LocalPrometheus:
    """A Prometheus that runs.

    Attributes:
        address: Host and port.
    """

    def __init__(self, address: str) -> None:
        """Ask the one at an address."""
        self.address = address

    @classmethod
    def start(
        cls, children: ChildProcesses, folder: Path, targets: Mapping[str, Sequence[str]], scrape_seconds: int
    ) -> "LocalPrometheus":
        """Start one, and return it when it answers.

        Args:
            children: Get the process.
            folder: For its settings and data.
            targets: Addresses that are scraped, by job.
            scrape_seconds: Between two scrapes.

        Raises:
            ConfigurationError: Prometheus is not installed.
            UnreachableError: It does not start.
        """
        program = shutil.which("prometheus")
        if program is None:
            raise ConfigurationError(
                "Prometheus is not installed; on Debian: apt-get install prometheus, or go without: --no-prometheus"
            )
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
            for job, addresses in targets.items()
        ]
        interval = {"scrape_interval": f"{scrape_seconds}s", "scrape_timeout": f"{scrape_seconds}s"}
        settings = folder / "prometheus.yml"  # JSON is YAML too
        settings.write_text(json.dumps({"global": interval, "scrape_configs": jobs}, indent=2))
        address = f"127.0.0.1:{free_port()}"
        arguments = [f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}"]
        child = children.start(
            "prometheus", [program, *arguments, f"--web.listen-address={address}"], is_heard=False
        )
        prometheus, deadline = cls(address), time.monotonic() + _START_SECONDS
        while not prometheus.is_ready():
            if not child.is_running() or time.monotonic() > deadline:
                raise UnreachableError(f"Prometheus did not start: {child.log_tail()}")
            time.sleep(0.1)
        return prometheus

    def is_ready(self) -> bool:
        """Return whether it answers questions."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return what an expression gives now: labels and value of each series.

        Raises:
            UnreachableError: Prometheus does not answer, or refuses it.
        """
        url = f"http://{self.address}/api/v1/query?{urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found = json.load(answer)["data"]["result"]
        except (OSError, KeyError, ValueError) as error:
            raise UnreachableError(f"Prometheus did not answer {expression!r}: {error}") from error
        return [(dict(one["metric"]), float(one["value"][1])) for one in found]
