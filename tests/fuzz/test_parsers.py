"""Whatever bytes come, parsers return or refuse: nothing else escapes, nothing hangs, and memory stays bounded."""

from pathlib import Path

import numpy as np
import pytest
from damaged_archives import damaged_lzma
from fuzz_seeds import seeds
from fuzzed_parsers import GROUPS, Group, Parser, archives, files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from process_memory import peak_memory

from quantization.errors import MalformedError, QuantFleetError
from quantization.npz_content import pack_arrays, unpack_arrays

MOST_BYTES = 320 << 20
"""What one input may make a parser use: a blob may decode to 256 MiB."""

INCOMPLETE = {"blob", "difference", "bundle", "root", "timestamp", "kept files"}
"""Parsers that refuse even their healthy examples, each at its end: a digest, or the next file, is another's."""

EXTREMES = (
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\x80" + b"\0" * 7,
    b"\0\0\0\x80",
    b"NaN",
    b"1e999",
    b"[" * 5000,
)


@st.composite
def damaged(draw: st.DrawFn, healthy: bytes) -> bytes:
    """Return bytes with a few pieces changed, cut out, doubled or put in."""
    data = bytearray(healthy)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        kind = draw(st.integers(0, 3))
        piece = (
            draw(st.sampled_from(EXTREMES) | st.binary(max_size=8)) if kind < 2 else bytes(data[start:end])
        )
        if kind == 0:  # in the place of as many bytes
            data[start : start + len(piece)] = piece
        elif kind == 1:
            data[start:end] = piece
        elif kind == 2:
            data[start:start] = piece
        else:
            del data[start : end if draw(st.booleans()) else len(data)]
    return bytes(data)


Case = tuple[Group, dict[str, list[bytes]]]


@pytest.fixture(scope="module", params=list(GROUPS))
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    examples = seeds(request.param, folder)
    return GROUPS[request.param](folder), examples


@pytest.mark.slow
def test_parsers_read_what_they_read_every_day(group: Case) -> None:
    parsers, examples = group
    assert parsers.keys() == examples.keys()
    for name, parse in parsers.items():
        if name not in INCOMPLETE:
            parse(examples[name][0])


@pytest.mark.slow
def test_parsers_return_or_refuse(group: Case) -> None:
    parsers, examples = group
    cases = [(name, data) for name, found in examples.items() for data in found]

    @settings(
        max_examples=25 * len(cases), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        name, healthy = data.draw(st.sampled_from(cases))
        refusal = refusal_of(parsers[name], data.draw(damaged(healthy) | st.binary(max_size=200)))
        assert refusal is None or str(refusal)

    with peak_memory() as used:
        run()
    assert used.bytes < MOST_BYTES


def test_slots_that_are_nested_too_deep_are_refused(tmp_path: Path) -> None:
    assert refusal_of(files(tmp_path)["slots"], b"[" * 4000) is not None


@pytest.mark.parametrize("flag", [0x01, 0x20])  # encrypted, patched
def test_an_archive_of_a_kind_that_python_cannot_read_is_refused(flag: int, tmp_path: Path) -> None:
    archive = bytearray(pack_arrays({"codes/fc": np.zeros(3, np.int8)}))
    archive[archive.index(b"PK\1\2") + 8] |= flag
    assert refusal_of(archives(tmp_path)["arrays"], bytes(archive)) is not None


def test_an_archive_packed_by_a_method_whose_errors_are_its_own_is_refused(tmp_path: Path) -> None:
    assert refusal_of(archives(tmp_path)["arrays"], damaged_lzma("codes/fc")) is not None


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantization.npz_content.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(MalformedError, match="at most 1000"):
        unpack_arrays(pack_arrays({"codes/fc": np.zeros(2000, np.int8)}))


def refusal_of(parse: Parser, data: bytes) -> QuantFleetError | None:
    """Return what a parser refused with; None where it did not."""
    try:
        parse(data)
    except QuantFleetError as error:
        return error
    return None
