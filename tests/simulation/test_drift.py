import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantization.errors import ConfigurationError
from simulation.drift import (
    DRIFT_KINDS,
    Domain,
    Drift,
    DriftKind,
    apply_drifts,
    known_drifts,
    parse_drifts,
    require_drifts,
)


def rows(domain: Domain, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    shapes = {"image": (4, 6, 8, 8), "sensor": (4, 6, 32), "audio": (4, 400), "generic": (4, 6, 8, 8)}
    if domain == "image":
        return rng.uniform(0, 1, shapes[domain]).astype(np.float32)
    return rng.normal(0, 0.2, shapes[domain]).astype(np.float32)


def drifted(domain: Domain, *specifications: str, seed: int = 0) -> NDArray[np.float32]:
    result = apply_drifts(rows(domain), parse_drifts(specifications), domain, np.random.default_rng(seed))
    assert result.dtype == np.float32
    return np.asarray(result, np.float32)


EVERY_KIND = [
    pytest.param(kind, domain, id=f"{kind.name}-{domain}") for kind in DRIFT_KINDS for domain in kind.domains
]


@pytest.mark.parametrize(("kind", "domain"), EVERY_KIND)
def test_every_drift_changes_rows_as_its_example_says_and_leaves_its_input_alone(
    kind: DriftKind, domain: Domain
) -> None:
    raw = rows(domain)
    before = raw.copy()
    drifts = parse_drifts([f"{kind.name}={kind.example}"])
    after = apply_drifts(raw, drifts, domain, np.random.default_rng(0))
    assert after.shape == raw.shape
    assert after.dtype == np.float32
    assert np.isfinite(after).all()
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize(("kind", "domain"), EVERY_KIND)
def test_the_same_seed_gives_the_same_rows(kind: DriftKind, domain: Domain) -> None:
    text = f"{kind.name}={kind.example}"
    np.testing.assert_array_equal(drifted(domain, text, seed=3), drifted(domain, text, seed=3))


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("gain=1", "image"),
        ("brightness=0", "image"),
        ("contrast=1", "image"),
        ("blur=1", "image"),
        ("noise=0", "image"),
        ("sensor-gain=1", "sensor"),
        ("acc-offset=0,0,0", "sensor"),
        ("gyro-dead=0", "sensor"),
        ("rotation=0", "sensor"),
        ("mic-gain=0", "audio"),
        ("snr=120", "audio"),
        ("offset=0", "generic"),
    ],
)
def test_the_neutral_severity_changes_nothing(text: str, domain: Domain) -> None:
    np.testing.assert_allclose(drifted(domain, text), rows(domain), atol=2e-6)


def test_no_drift_changes_nothing() -> None:
    np.testing.assert_array_equal(drifted("image"), rows("image"))


def test_drifts_act_in_the_order_given() -> None:
    raw = np.full((1, 1, 4, 4), 0.5, np.float32)

    def value(*specifications: str) -> float:
        drifts = parse_drifts(specifications)
        return float(apply_drifts(raw, drifts, "image", np.random.default_rng(0))[0, 0, 0, 0])

    assert value("gain=0.5", "brightness=0.2") == pytest.approx(0.45)
    assert value("brightness=0.2", "gain=0.5") == pytest.approx(0.35)


def test_severities_are_parsed_as_numbers_or_tuples() -> None:
    assert parse_drifts(["contrast=0.3", " acc-offset = 0.3, 0.2,-0.2 "]) == (
        Drift("contrast", 0.3),
        Drift("acc-offset", (0.3, 0.2, -0.2)),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("contrats=0.3", "did you mean 'contrast'?"),
        ("fog=1", "unknown drift 'fog'; known: gain (factor on the light"),
        ("", "unknown drift ''"),
        ("contrast", "has no severity; give contrast=0.3"),
        ("contrast=", "has no severity"),
        ("contrast=much", "'much' is no number"),
        ("contrast=nan", "nan"),
        ("contrast=inf", "inf"),
        ("contrast=-1", "from 0 to"),
        ("contrast=0.3,0.4", "has 2 numbers; give 1"),
        ("acc-offset=0.3", "has 1 numbers; give 3, such as acc-offset=0.3,0.2,-0.2"),
        ("blur=2", "give an odd number, such as blur=3"),
        ("blur=2.5", "give an odd number"),
        ("dead-channels=0.5", "give a whole number"),
        ("dead-channels=-1", "from 0"),
        ("gyro-dead=2", "from 0 to 1"),
        ("rotation=500", "from -180 to 180"),
    ],
)
def test_a_drift_that_cannot_be_used_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_drifts([text])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_drift_given_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'blur' is given 2 times"):
        parse_drifts(["blur=3", "blur=5"])


def test_a_drift_of_another_domain_is_refused_with_the_names_that_fit() -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_drifts(parse_drifts(["mic-gain=-12"]), "sensor")
    told = str(caught.value)
    assert "'mic-gain' is not for sensor data" in told
    assert "sensor-gain (factor on all channels)" in told
    assert "brightness" not in told


def test_a_severity_that_only_another_domain_allows_is_refused() -> None:
    drifts = parse_drifts(["gain=-2"])
    require_drifts(drifts, "generic")
    with pytest.raises(ConfigurationError, match="from 0 to 100"):
        require_drifts(drifts, "image")


def test_every_known_drift_is_listed_with_a_unit() -> None:
    listed = known_drifts()
    for kind in DRIFT_KINDS:
        assert f"{kind.name} ({kind.unit}" in listed


def test_every_drift_is_in_the_docs() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text().splitlines()
    described = [line for line in lines if line.startswith("| `")]
    for kind in DRIFT_KINDS:
        assert any(line.startswith(f"| `{kind.name}` ") for line in described)


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        (drift,) = parse_drifts([text])
    except ConfigurationError:
        return
    assert all(math.isfinite(value) for value in drift.severities)
