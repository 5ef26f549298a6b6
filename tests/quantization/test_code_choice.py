import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.code_choice import CodeChoice, greatest_codes
from quantization.errors import ConfigurationError

PRICE = np.random.default_rng(0).exponential(1.0, (2, 15))  # of the codes -7 to 7, for two parts of the rows


between_codes = st.floats(-9, 9).filter(
    lambda value: value % 1 != 0.5
)  # half-way, either neighbour is the nearest


@given(st.lists(between_codes, min_size=6, max_size=6), st.floats(0.01, 100))
def test_choice_costs_least_of_the_codes_around_the_ideal(values: list[float], curvature: float) -> None:
    ideal, curvatures = np.array([values]), np.full((1, 6), curvature)
    chosen = CodeChoice.of(4, 6, PRICE).best(ideal, curvatures)
    for row, (value, code) in enumerate(zip(values, chosen[0], strict=True)):
        inside = min(max(value, -7.0), 7.0)
        nearest = np.clip(np.rint(inside), -7, 7)
        inner = np.trunc(inside)

        def cost(q: float, inside: float = inside, row: int = row) -> float:
            return curvature * (q - inside) ** 2 + PRICE[row // 3][int(q) + 7]

        assert code in {nearest, inner}
        assert cost(code) <= min(cost(nearest), cost(inner)) + 1e-9


@given(st.lists(st.floats(-9, 9), min_size=6, max_size=6))
def test_codes_without_price_are_the_nearest(values: list[float]) -> None:
    widths = np.array([2, 3, 4, 2, 3, 4])
    chosen = CodeChoice.of(widths, 6).best(np.array([values]))
    most = np.array([1, 3, 7, 1, 3, 7])
    np.testing.assert_array_equal(chosen[0], np.clip(np.rint(values), -most, most))


def test_code_that_is_no_better_stays() -> None:
    choice = CodeChoice.of(4, 6, PRICE)
    rng = np.random.default_rng(1)
    ideal, current = rng.uniform(-7, 7, (1, 6)), rng.integers(-7, 8, (1, 6)).astype(float)
    curvature = np.full((1, 6), 0.01)  # price decides nearly alone
    kept = choice.no_worse(ideal, curvature, choice.best(ideal, curvature), current)

    def costs(codes: np.ndarray) -> np.ndarray:
        prices = [PRICE[row // 3][int(q) + 7] for row, q in enumerate(codes[0])]
        return curvature[0] * np.square(codes[0] - ideal[0]) + prices

    assert (costs(current if kept is None else kept) <= costs(current) + 1e-12).all()


def test_nothing_changes_where_all_codes_are_best() -> None:
    codes = np.array([[1.0, -2.0]])
    assert CodeChoice.of(4, 2).no_worse(codes, np.ones((1, 2)), codes.copy(), codes) is None


def test_rows_and_prices_that_do_not_fit_are_refused() -> None:
    for rows, width in ((5, 4), (6, 5)):
        with pytest.raises(ConfigurationError, match="prices"):
            CodeChoice.of(width, rows, PRICE)
    with pytest.raises(ConfigurationError, match="2 to 8"):
        greatest_codes(np.array([4, 9]), 2)
