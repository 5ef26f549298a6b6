import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantization.solver_output import discarded_solver_output

ROOT = Path(__file__).resolve().parents[2]

PROGRAMS = """
import json
import sys

import numpy as np

from quantization.bit_allocation import Budget, Candidate, allocate_bits

def program(seed):
    rng = np.random.default_rng(seed)
    spread, layers = rng.uniform(0, 12), {}
    for i in range(int(rng.integers(2, 64))):
        weights, gain = int(10 ** rng.uniform(1, 7)), 10.0 ** -rng.uniform(0, spread)
        layers[f"layer{i}"] = [
            Candidate(b, weights * b // 8, gain * 4.0**-b, weights * 1e-10 * (1 + b / 8)) for b in (2, 3, 4, 5, 6, 8)
        ]
    sizes = [[c.size_bytes for c in layer] for layer in layers.values()]
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    return layers, Budget(int(low + (high - low) * rng.random()))

fits = [allocate_bits(layers, budget).fits(budget) for layers, budget in map(program, (*range(8), 139, 298))]
print(json.dumps(sum(fits)))
"""


def test_nothing_but_ours_is_on_standard_output_when_programs_are_hard() -> None:
    # The solver prints a line for the last two, seen with HiGHS of scipy 1.17.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"10\n"


def test_what_c_prints_inside_is_lost_and_what_is_around_it_is_kept() -> None:
    script = """
import ctypes
from quantization.solver_output import discarded_solver_output
libc = ctypes.CDLL(None)
print("python before")
libc.printf(b"c before\\n")
with discarded_solver_output():
    libc.printf(b"solver\\n")
libc.printf(b"c after\\n")
libc.fflush(None)
print("python after")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().splitlines() == ["python before", "c before", "c after", "python after"]


def test_a_process_without_standard_output_can_allocate() -> None:
    script = """
import os
from quantization.solver_output import discarded_solver_output
os.close(1)
with discarded_solver_output():
    inside = True
os.write(2, b"inside" if inside else b"")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        check=False,
    )
    assert done.stderr.startswith(b"inside")


def test_standard_output_is_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="inside"), discarded_solver_output():
        raise ValueError("inside")
    os.write(1, b"back")
    assert capfd.readouterr().out == "back"
