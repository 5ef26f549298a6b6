"""Fuzzes a group of parsers with atheris: python fuzz_process.py GROUP FOLDER [options of libFuzzer].

An input's first byte says which parser of the group it is for. Ends with 0 where nothing but refusals came out.
"""

import contextlib
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["quantization", "client", "strategies", "fuzzed_parsers"]):
    from fuzzed_parsers import GROUPS

    from quantization.errors import QuantFleetError

    PARSERS = [*GROUPS[sys.argv[1]](Path(sys.argv[2])).values()]


def one(data: bytes) -> None:
    """Give one input to one parser."""
    if not data:
        return
    with contextlib.suppress(QuantFleetError):
        PARSERS[data[0] % len(PARSERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[3:]], one)
    atheris.Fuzz()
