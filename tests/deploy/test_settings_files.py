"""Settings files in deploy/ are ones that the commands read."""

import re
from pathlib import Path

import yaml
from deployed_commands import DEPLOY

from client.settings import DeviceSettings
from server.serve_settings import ServeSettings


def test_the_server_reads_its_settings(tmp_path: Path) -> None:
    settings = ServeSettings.read(tmp_path, DEPLOY / "server.toml")
    assert settings.server.grace_seconds == 20.0
    assert settings.plan.shares == (0.05, 0.2, 0.5)


def test_the_server_reads_the_settings_of_the_config_map(tmp_path: Path) -> None:
    data = yaml.safe_load((DEPLOY / "kubernetes" / "config.yaml").read_text())["data"]
    path = tmp_path / "server.toml"
    path.write_text(data["server.toml"])
    settings = ServeSettings.read(tmp_path, path)
    assert settings.server.address == "0.0.0.0:9443"
    assert settings.registry_place.startswith("postgresql+psycopg://")


def test_an_agent_reads_its_settings() -> None:
    settings = DeviceSettings.from_toml(DEPLOY / "client.toml")
    assert settings.device_class == "arm"
    assert settings.limits.disk_bytes == 256 << 20


def test_an_agent_reads_the_keys_that_its_settings_only_show(tmp_path: Path) -> None:
    text = (DEPLOY / "client.toml").read_text()
    for shown in ("model_digest", "metered_bytes", "[network]", "metered"):
        assert f"# {shown}" in text
    path = tmp_path / "client.toml"
    path.write_text(
        re.sub(r"^# (model_digest|metered\w*|\[network\])(?= =|$)", r"\1", text, flags=re.MULTILINE)
    )
    settings = DeviceSettings.from_toml(path)
    assert settings.model_digest == "0" * 64
    assert settings.network.metered
