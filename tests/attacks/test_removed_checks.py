"""Every attack's test fails once the checks are taken out that stop the attack (`attack_checks`): none is vacuous."""

import ast
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from attack_checks import ELSEWHERE, NO_ATTACKS, REMOVALS
from check_removal import LANDED, Removal

ATTACKS = Path(__file__).parent
ROOT = ATTACKS.parents[1]


def attack_tests() -> set[str]:
    """Return the names of the folder's tests, but for controls and this file's own."""
    names = set()
    for path in ATTACKS.glob("test_*.py"):
        if path != Path(__file__):
            tree = ast.parse(path.read_text())
            names |= {
                node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return {name for name in names if name.startswith("test_") and not name.startswith("test_control_")}


def test_of_every_attack_it_is_said_what_stops_it() -> None:
    told = {attack.partition("[")[0] for removal in REMOVALS for attack in removal.attacks}
    told |= ELSEWHERE.keys() | NO_ATTACKS.keys()
    assert attack_tests() == told


@pytest.mark.parametrize("removal", REMOVALS, ids=lambda removal: removal.attacks[0])
def test_checks_are_where_the_table_says(removal: Removal) -> None:
    with ExitStack() as stack:
        for check in removal.checks:
            stack.enter_context(check.removed())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of every attack without its checks, by the name of its test; in a process of its own."""
    path = tmp_path_factory.mktemp("removed") / "outcomes.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "check_removal", "-p", "no:cacheprovider",
            "--removed-to", str(path), "--tb", "short", str(ATTACKS),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}",
            "PYTEST_ADDOPTS": "",
            "QUANTFLEET_PATIENCE_SECONDS": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert path.exists(), done.stdout + done.stderr
    found: dict[str, str] = json.loads(path.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("removal", REMOVALS, ids=lambda removal: removal.attacks[0])
def test_an_attack_is_noticed_where_its_checks_are_taken_out(
    outcomes: dict[str, str], removal: Removal
) -> None:
    mine = {test: outcome for test, outcome in outcomes.items() if removal.holds(test)}
    for attack in removal.attacks:
        assert any(test.startswith(attack) for test in mine), attack
    assert mine == dict.fromkeys(mine, LANDED)
