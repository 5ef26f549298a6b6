"""Names of signed targets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import MalformedError
from quantization.target_name import TargetName

DIGEST = "0f" * 32


def test_a_name_is_parsed_back() -> None:
    name = TargetName(DIGEST, "x86-vnni", 12)
    assert str(name) == f"{DIGEST}/x86-vnni/12"
    assert TargetName.parse(str(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/passwd",
        f"{DIGEST}/../1",
        f"{DIGEST}/arm/../2",
        f"{DIGEST}/a/b/1",
        f"/{DIGEST}/arm/1",
        f"{DIGEST}/arm/0",
        f"{DIGEST}/arm/01",
        f"{DIGEST}/arm/-1",
        f"{DIGEST}/arm/1\n",
        f"{DIGEST}/.arm/1",
        f"{DIGEST}/{'a' * 64}/1",
        f"{DIGEST.upper()}/arm/1",
        f"{DIGEST}\\arm\\1",
        f"{DIGEST}/arm/99999999999",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(MalformedError):
        TargetName.parse(name)


@given(st.text(max_size=20), st.integers(-5, 20))
def test_no_part_becomes_a_path(device_class: str, version: int) -> None:
    try:
        name = TargetName(DIGEST, device_class, version)
    except MalformedError:
        return
    assert str(name).count("/") == 2
    assert ".." not in str(name).split("/")
    assert TargetName.parse(str(name)) == name
