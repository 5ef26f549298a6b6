import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.calibration import Range
from quantization.errors import ConfigurationError, MalformedError
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection

DIGEST = "ab" * 32


def policy(generation: int = 3, hi: float = 1.1) -> Policy:
    return Policy(
        model_digest=DIGEST,
        device_class="arm",
        generation=generation,
        ranges={"relu": Range(0.0, hi), "in": Range(-0.1, 2.5)},
        bit_widths={"conv": 8, "fc": 7},
        corrections={"conv": ChannelCorrection(np.array([1.5, 0.1]), np.array([-0.3, 1e-9]))},
        range_method="mse",
    )


@given(st.floats(0, 1e30, allow_nan=False))
def test_json_round_trip_is_exact(hi: float) -> None:
    original = policy(hi=hi)
    again = Policy.from_json_bytes(original.to_json_bytes())
    assert again.changes_nothing_in(original)
    assert again.generation == original.generation
    assert again.to_json_bytes() == original.to_json_bytes()


def test_equal_policies_are_equal_bytes_in_any_order_of_their_keys() -> None:
    a = policy()
    b = Policy(
        a.model_digest,
        a.device_class,
        a.generation,
        dict(reversed(a.ranges.items())),
        dict(reversed(a.bit_widths.items())),
        a.corrections,
        a.range_method,
    )
    assert a.to_json_bytes() == b.to_json_bytes()


def test_generation_number_alone_changes_nothing_and_a_range_does() -> None:
    assert policy(generation=4).changes_nothing_in(policy(generation=3))
    assert not policy(hi=1.2).changes_nothing_in(policy(hi=1.1))


def test_layer_without_correction_has_the_identity() -> None:
    assert policy().correction("fc", 3) == ChannelCorrection.identity(3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 2),
        ("format_version", None),
        ("model_digest", "xyz"),
        ("generation", -1),
        ("ranges", {"relu": [0.0]}),
        ("ranges", {"relu": [1.0, 2.0, "x"], "b": ["NaN", 1.0]}),
        ("ranges", 7),
        ("bit_widths", {"conv": 9}),
        ("corrections", {"conv": {"gain": [-1.0], "offset": [0.0]}}),
        ("corrections", {"conv": {"gain": [1.0]}}),
    ],
)
def test_policy_with_impossible_content_is_refused(field: str, value: object) -> None:
    record = json.loads(policy().to_json_bytes())
    record[field] = value
    with pytest.raises(MalformedError):
        Policy.from_json_bytes(json.dumps(record).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Policy.from_json_bytes(data)


def test_bit_width_of_nine_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="layer conv: bit-width 9"):
        Policy(DIGEST, "arm", 0, {}, {"conv": 9}, {}, "mse")
