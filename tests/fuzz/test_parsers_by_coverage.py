"""The same parsers, with inputs that grow towards code that no input reached before (atheris)."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_seeds import seeds
from fuzzed_parsers import GROUPS

pytest.importorskip("atheris", reason="atheris cannot be installed here; the extra 'dev' has it for Linux")

PROJECT = Path(__file__).parents[2]
SECONDS, MOST_MEGABYTES, LONGEST_SECONDS = 3, 1024, 60


@pytest.mark.slow
@pytest.mark.parametrize("group", list(GROUPS))
def test_nothing_but_refusals_comes_out(group: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    examples = seeds(group, tmp_path)
    cases = [bytes([place]) + data for place, found in enumerate(examples.values()) for data in found]
    for number, case in enumerate(cases):
        (corpus / str(number)).write_bytes(case)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "tests/support/fuzz_process.py",
        group,
        str(tmp_path),
        str(corpus),
    ]
    limits = [
        f"-max_total_time={SECONDS}",
        f"-rss_limit_mb={MOST_MEGABYTES}",
        f"-timeout={LONGEST_SECONDS}",
        "-max_len=20000",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(
        [*command, *limits], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]  # atheris prints what was raised
    assert "DONE" in done.stderr  # it ran to its end
