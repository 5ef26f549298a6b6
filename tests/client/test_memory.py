import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resnet20_is_served_and_observed_in_less_than_100_mb() -> None:
    script = ROOT / "benchmarks/bench_device_memory.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "imported of onnx, scipy, sklearn, sqlalchemy, torch: none" in done.stdout


def test_the_setting_is_taken_by_glibc_and_changes_no_result() -> None:
    script = (
        "from client.memory import keep_memory_small; taken = keep_memory_small();"
        "import numpy as np; assert np.ones(1 << 20).sum() == 1 << 20; print(taken)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    is_glibc = platform.libc_ver()[0] == "glibc"
    assert done.stdout.strip() == str(is_glibc)
