"""The record of an allocation reads back as it was written, and nothing else is taken for one."""

import pytest

from quantization.errors import MalformedError
from server.precision_record import FrontPoint, LayerPrecision, PrecisionRecord

RECORD = PrecisionRecord(
    layers=(
        LayerPrecision("conv", 432, "int8", 5, 4.25, 230, 0.5, 0.4, None, 1, 0.01),
        LayerPrecision("head", 640, "fp16", 16, 16.5, 1320, 0.1, 0.05, 0.2, 12, 0.0),
    ),
    size_ratio=2.77,
    weight_bytes=1550,
    fp32_weight_bytes=4288,
    overhead_bytes=2000,
    predicted_loss=0.01,
    measured_loss=None,
    tune_seconds=1.5,
    front=(FrontPoint(1000, 4.288, 0.1), FrontPoint(1550, 2.77, 0.01, 0.02, 0.1)),
)


def test_record_reads_back() -> None:
    assert PrecisionRecord.from_json(RECORD.to_json()) == RECORD
    assert RECORD.bits == {"conv": 5, "head": 16}


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"layers": [{}], "front": []}', '{"layers": 3}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(MalformedError, match="record of precision"):
        PrecisionRecord.from_json(text)
