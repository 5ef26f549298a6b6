"""Probes of a cohort: kept, read back, and turned into gains and measured losses."""

import pytest

from quantization.errors import MalformedError
from server.field_probes import ENOUGH_LABELS, FieldProbes, measured
from server.precision import LayerLatency
from strategies.precision_messages import DIVERGENCE_STEPS, ProbeReply


def reply(
    nats: float, count: int = 20, *, disagreements: int = 0, labelled: int = 0, lost: int = 0
) -> ProbeReply:
    return ProbeReply(
        round(nats * count * DIVERGENCE_STEPS), count, disagreements, labelled, labelled, labelled - lost
    )


def test_probes_read_back_and_equal_probes_are_equal_bytes() -> None:
    probes = FieldProbes(
        {"a": 0.5, "b": 0.25},
        {"a": {"2": reply(0.1), "3": reply(0.2)}, "b": {}},
        {"a": LayerLatency(1e-3, 2e-3)},
    )
    content = probes.to_bytes()
    back = FieldProbes.from_bytes(content)
    assert back == probes
    assert back.to_bytes() == content


@pytest.mark.parametrize("data", [b"", b"PK", b"\0" * 64])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        FieldProbes.from_bytes(data)


def test_gains_are_divergence_over_loss_and_survive_a_fifth_of_liars() -> None:
    honest = {str(i): reply(0.3) for i in range(16)}
    liars = {str(i): reply(300.0) for i in range(16, 20)}
    gains = FieldProbes({"a": 0.6}, {"a": {**honest, **liars}}).gains()
    assert gains["a"].value == pytest.approx(0.5, rel=1e-4)
    assert gains["a"].devices == 20


def test_layers_without_inputs_have_no_gain() -> None:
    assert FieldProbes({"a": 0.6}, {"a": {"2": reply(0.0, count=0)}}).gains() == {}


def test_a_drop_is_of_hits_where_there_are_enough_labels_and_of_disagreements_otherwise() -> None:
    few = measured({str(i): reply(0.1, disagreements=2, labelled=10, lost=1) for i in range(10)})
    many = {
        str(i): reply(0.1, count=40, disagreements=2, labelled=40, lost=1)
        for i in range(ENOUGH_LABELS // 40 + 1)
    }
    labelled = measured(many)
    assert few is not None
    assert labelled is not None
    assert few.drop == pytest.approx(100 * 0.5 * 2 / 20)
    assert labelled.drop == pytest.approx(100 / 40)
    assert few.inputs == 200


def test_nothing_is_measured_where_no_device_has_inputs() -> None:
    assert measured({}) is None
    assert measured({"2": reply(0.0, count=0)}) is None
