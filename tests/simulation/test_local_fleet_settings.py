from typing import Any

import pytest
from typer.testing import CliRunner

from quantization.errors import ConfigurationError
from simulation.cli import app
from simulation.local_fleet_settings import LocalFleetSettings


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"agents": 3}, "6 to 100 agents"),
        ({"agents": 6, "nodes": 7}, "6 to 100 agents"),
        ({"bad": "haunted"}, "known are destroyed-ranges, two-bits, slow, does-not-load"),
        ({"registry_url": "postgresql://x/y", "has_postgres": True}, "not both"),
        ({"drift": "sunspots=1"}, "sunspots"),
    ],
)
def test_a_fleet_that_shows_nothing_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        LocalFleetSettings(**wrong)


def test_wrong_usage_is_said_before_anything_starts() -> None:
    done = CliRunner().invoke(app, ["fleet", "--bad=haunted"])
    assert done.exit_code == 2
    assert "haunted" in done.stderr
