import pytest

from quantization.device_class import ARM, X86, X86_VNNI, DeviceClass
from quantization.errors import ConfigurationError


@pytest.mark.parametrize("name", ["", "ARM", "a b", "-x", "x" * 64, "a/b", "über"])
def test_name_that_cannot_be_a_label_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="device class"):
        DeviceClass(name)


@pytest.mark.parametrize(("bits", "budget"), [(1, None), (9, None), (8, 0), (8, -5)])
def test_impossible_capability_is_refused(bits: int, budget: int | None) -> None:
    with pytest.raises(ConfigurationError):
        DeviceClass("camera", bits, budget)


def test_only_x86_without_vnni_needs_seven_bit_weights() -> None:
    assert (X86.max_weight_bits, X86_VNNI.max_weight_bits, ARM.max_weight_bits) == (7, 8, 8)
