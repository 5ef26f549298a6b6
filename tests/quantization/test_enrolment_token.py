import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.enrolment_token import EnrolmentToken
from quantization.errors import MalformedError

SECRET, FINGERPRINT = "s" * 43, "0f" * 32


def test_a_token_is_read_back() -> None:
    token = EnrolmentToken(SECRET, FINGERPRINT)
    assert EnrolmentToken.parse(f"  {token.text}\n") == token
    assert token.text == f"qft1.{SECRET}.{FINGERPRINT}"


@pytest.mark.parametrize(
    "text",
    ["", "qft1", f"qft2.{SECRET}.{FINGERPRINT}", f"qft1.{SECRET}", f"qft1.{SECRET}.{FINGERPRINT}.x",
     f"qft1.{SECRET[1:]}.{FINGERPRINT}", f"qft1.{SECRET}.{FINGERPRINT.upper()}", f"{SECRET}.{FINGERPRINT}",
     f"qft1.{SECRET}.{FINGERPRINT[1:]}"],
)  # fmt: skip
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(MalformedError, match="devices token"):
        EnrolmentToken.parse(text)


def test_neither_errors_nor_repr_show_the_secret() -> None:
    assert SECRET not in repr(EnrolmentToken(SECRET, FINGERPRINT))
    with pytest.raises(MalformedError) as caught:
        EnrolmentToken.parse(f"qft1.{SECRET}.wrong")
    assert SECRET not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with contextlib.suppress(MalformedError):
        EnrolmentToken.parse(text)
