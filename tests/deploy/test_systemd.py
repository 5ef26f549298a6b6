"""The systemd units are ones that systemd takes, and are locked down."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deployed_commands import ROOT, UNITS, unit_sections

from client.credentials import FOLDER
from client.supernode_key import PRIVATE_KEY

SYSTEMD = shutil.which("systemd-analyze")
FOLDERS = {
    "StateDirectory": "/var/lib/",
    "RuntimeDirectory": "/run/",
    "ConfigurationDirectory": "/etc/",
}
MOST_EXPOSED = 2.0
"""Of 10, as `systemd-analyze security` judges; a service with nothing locked has 9.6."""


def settings(path: Path) -> dict[str, str]:
    return dict(unit_sections(path)["Service"])


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_has_what_every_service_needs(path: Path) -> None:
    sections = unit_sections(path)
    assert set(sections) == {"Unit", "Service", "Install"}
    service = settings(path)
    assert service["User"] == service["Group"] != "root"
    assert service["Restart"] == "on-failure"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert dict(sections["Install"])["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_writes_only_where_it_may(path: Path) -> None:
    service = settings(path)
    own = tuple(root + service[key] for key, root in FOLDERS.items() if key in service)
    for found in re.findall(r"(?<![\w.])/(?:var|run|etc)/[\w./-]+", service["ExecStart"]):
        assert found.startswith(own), found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_the_unit(path: Path, tmp_path: Path) -> None:
    if SYSTEMD is None:
        pytest.skip("systemd is not installed")
    for unit in UNITS:  # with programs that are there
        text = unit.read_text().replace("/opt/quantfleet/bin", str(Path(sys.executable).parent))
        text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    result = subprocess.run(
        [SYSTEMD, "verify", "--recursive-errors=no", str(tmp_path / path.name)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert path.name not in result.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_the_unit_locked_down(path: Path) -> None:
    if SYSTEMD is None:
        pytest.skip("systemd is not installed")
    result = subprocess.run(
        [SYSTEMD, "security", "--offline=true", str(path)], capture_output=True, text=True, check=False
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert found, result.stderr
    assert float(found[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_what_a_unit_names_as_its_documentation_is_installed(path: Path) -> None:
    name = path.stem.removeprefix("quantfleet-")
    named = Path(dict(unit_sections(path)["Unit"])["Documentation"].removeprefix("file:"))
    assert (ROOT / "docs" / named.name).is_file()
    guide = (ROOT / "docs" / "deploy.md").read_text()
    [commands] = [block for block in guide.split("```") if re.search(rf"deploy/systemd/.*{name}", block)]
    assert f"-t {named.parent} docs/*.md" in commands


def test_the_supernode_has_the_key_that_enrolment_writes_for_it() -> None:
    [unit] = [path for path in UNITS if "supernode" in path.name]
    words = shlex.split(settings(unit)["ExecStart"])
    key = Path(words[words.index("--auth-supernode-private-key") + 1])
    assert key == Path("/var/lib/quantfleet-client") / FOLDER / PRIVATE_KEY
    assert "device-name=" in words[words.index("--node-config") + 1]
