from hypothesis import given
from hypothesis import strategies as st

from quantization.printable import printable


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)
