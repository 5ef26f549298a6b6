"""Choosing devices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import RoundFailedError
from server.cohort import by_class, sample
from server.settings import CohortSettings
from strategies.messages import DeviceHello


def hello(node_id: int, device_class: str = "arm", samples: int = 10) -> DeviceHello:
    return DeviceHello(node_id, device_class, 0, "", samples, has_labels=False)


def test_devices_are_grouped_by_class_in_order() -> None:
    devices = [
        hello(3, "x86"),
        hello(2),
        hello(1),
        hello(4),
    ]
    assert {name: [d.node_id for d in group] for name, group in by_class(devices).items()} == {
        "arm": [1, 2, 4],
        "x86": [3],
    }


def test_devices_without_inputs_are_not_asked() -> None:
    chosen = sample([hello(1, samples=0), hello(2)], CohortSettings(), [0])
    assert [device.node_id for device in chosen] == [2]


def test_a_class_without_any_input_fails_and_says_so() -> None:
    with pytest.raises(RoundFailedError, match="none of the 2 devices has sampled inputs"):
        sample([hello(1, samples=0), hello(2, samples=0)], CohortSettings(), [0])


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 5), st.randoms())
def test_a_draw_is_a_share_that_only_seed_and_stream_decide(
    count: int, fraction: float, seed: int, random: object
) -> None:
    devices = [hello(node) for node in range(count)]
    shuffled = list(devices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    settings = CohortSettings(sample_fraction=fraction, seed=seed)
    chosen = sample(devices, settings, [1, 2])
    assert chosen == sample(shuffled, settings, [1, 2])
    assert len(set(chosen)) == len(chosen)
    assert fraction * count <= len(chosen) + 1e-6
    assert len(chosen) < fraction * count + 1


def test_another_stream_draws_other_devices() -> None:
    devices = [hello(node) for node in range(100)]
    settings = CohortSettings(sample_fraction=0.2)
    assert sample(devices, settings, [1]) != sample(devices, settings, [2])


def test_the_same_named_devices_are_drawn_whatever_their_nodes() -> None:
    settings = CohortSettings(sample_fraction=0.5)

    def drawn(nodes: range) -> list[str]:
        devices = [DeviceHello(node, "arm", 0, "", 10, False, name=f"d{k}") for k, node in enumerate(nodes)]
        return [device.name for device in sample(devices, settings, [1, 0])]

    assert drawn(range(9)) == drawn(range(100, 91, -1))
