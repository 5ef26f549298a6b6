"""Tests of `quantfleet-server migrate`, and of processes that migrate at the same time."""

import json
import threading
from pathlib import Path

import pytest
from postgres_server import postgres_server
from typer.testing import CliRunner

from server.cli import app
from server.database import connect, migrate, revision

runner = CliRunner()


def test_an_empty_database_gets_the_newest_tables(tmp_path: Path) -> None:
    result = runner.invoke(app, ["migrate", "--home", str(tmp_path), "--json"])
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    engine = connect(f"sqlite:///{tmp_path / 'registry.db'}")
    assert said["revision"] == revision(engine) != ""
    again = runner.invoke(app, ["migrate", "--home", str(tmp_path)])
    assert again.stdout == f"{said['registry']} is at revision {said['revision']}\n"


def test_a_database_that_cannot_be_opened_is_wrong_usage(tmp_path: Path) -> None:
    result = runner.invoke(app, ["migrate", "--home", str(tmp_path), "--registry-url", "nonsense"])
    assert result.exit_code == 2
    assert "nonsense" in result.stderr


def test_a_database_without_tables_has_no_revision(tmp_path: Path) -> None:
    assert revision(connect(f"sqlite:///{tmp_path / 'registry.db'}")) == ""


@pytest.mark.slow
def test_processes_that_start_together_migrate_once() -> None:
    with postgres_server() as url:
        failures: list[Exception] = []

        def start() -> None:
            engine = connect(url)
            try:
                migrate(engine)
            except Exception as error:  # noqa: BLE001 - shown by the assertion
                failures.append(error)
            finally:
                engine.dispose()

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failures
        engine = connect(url)
        assert revision(engine)
        engine.dispose()
