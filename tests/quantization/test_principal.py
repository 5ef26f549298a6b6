import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import MalformedError
from quantization.principal import Principal, Role

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)


@given(st.sampled_from(Role), NAMES)
def test_a_uri_is_read_back(role: Role, name: str) -> None:
    assert Principal.parse(Principal(role, name).uri) == Principal(role, name)


def test_a_uri_has_role_and_name() -> None:
    assert Principal(Role.DEVICE, "press-7").uri == "quantfleet://device/press-7"


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".a", "a/b", "a b", "a\n", "ä", "a" * 129, "../x", "a\0", "a%2fb"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(MalformedError, match="is not the name of a device"):
        Principal(Role.DEVICE, name)


@pytest.mark.parametrize(
    "uri",
    ["", "quantfleet://", "quantfleet://device", "quantfleet://device/", "quantfleet://root/a", "https://device/a",
     "quantfleet://device/a/b", "quantfleet://device/a\n", "quantfleet://Device/a", "QUANTFLEET://device/a",
     "quantfleet://device//a", "quantfleet://user@device/a", "quantfleet://device/a?x"],
)  # fmt: skip
def test_what_names_nobody_is_refused(uri: str) -> None:
    with pytest.raises(MalformedError):
        Principal.parse(uri)


@given(st.text(max_size=300))
def test_any_text_is_a_principal_or_refused(text: str) -> None:
    with contextlib.suppress(MalformedError):
        assert Principal.parse(text).uri == text
