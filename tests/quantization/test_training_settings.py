import pytest

from quantization.errors import ConfigurationError
from quantization.training_settings import SLOWEST, TrainingSettings


def test_rates_become_slower_until_a_tenth_is_left() -> None:
    settings = TrainingSettings()
    rates = [settings.slowed(share / 4).weight_rate for share in range(5)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == settings.weight_rate
    assert rates[-1] == pytest.approx(SLOWEST * settings.weight_rate)
    assert settings.slowed(0.5).label_weight == settings.label_weight


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": -1},
        {"batch_size": 0},
        {"seed": -1},
        {"measured_rows": -1},
        {"weight_rate": float("nan")},
        {"bias_rate": -0.1},
        {"temperature": 0.0},
        {"label_weight": float("inf")},
        {"mixing": 1.5},
        {"mixing": float("nan")},
        {"augmentations": ("fly",)},
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        TrainingSettings(**changes)  # type: ignore[arg-type]
