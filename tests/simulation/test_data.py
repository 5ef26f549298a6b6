import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from quantization.errors import ConfigurationError
from simulation.data import (
    DATA_VARIABLE,
    HubDataset,
    array_digest,
    fetch_images,
    has_data_file,
    read_data_file,
)
from simulation.tasks import load_task


def test_an_unset_variable_is_named_with_the_file_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError) as caught:
        read_data_file("har.npz", ("X",), "har")
    told = str(caught.value)
    assert "task 'har' needs har.npz, and QUANTFLEET_DATA is not set" in told
    assert "set QUANTFLEET_DATA" in told
    assert "\n" not in told


@pytest.mark.parametrize("name", ["har", "fsdd", "fashion_mnist", "cifar10"])
def test_a_folder_without_the_file_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigurationError, match=rf"task '{name}' needs .*\.npz, and {tmp_path} "):
        load_task(name, 0, tmp_path)


def test_only_the_arrays_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(3), other=np.arange(9))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    data = read_data_file("a.npz", ("X",), "a")
    assert set(data.arrays) == {"X"}
    assert len(data.digest) == 64
    assert has_data_file("a.npz")
    assert not has_data_file("b.npz")


def test_digest_tells_types_and_shapes_apart() -> None:
    x = np.zeros(4, np.float32)
    assert len({array_digest(x), array_digest(x.reshape(2, 2)), array_digest(x.view(np.int32))}) == 3


class _Table:
    """A split as the datasets library gives it."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def select(self, indices: range) -> "_Table":
        return _Table(len(indices))

    def with_format(self, _name: str) -> "_Table":
        return self

    def __getitem__(self, column: str) -> Any:
        return np.full((self.rows, 2, 2), 7) if column == "image" else np.arange(self.rows) % 10


def _install_hub(monkeypatch: pytest.MonkeyPatch, load_split: Any) -> None:
    module = ModuleType("flwr_datasets")
    hub = type("FederatedDataset", (), {"__init__": lambda *_, **__: None, "load_split": load_split})
    module.FederatedDataset = hub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)


def test_images_come_from_the_hub_where_its_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    _install_hub(monkeypatch, lambda _self, _name: _Table(100))
    data = fetch_images(HubDataset("set", "image", "label"), 20, 10)
    assert data.arrays["x_train"].shape == (20, 2, 2)
    assert data.arrays["x_train"].dtype == np.uint8
    assert data.arrays["y_test"].tolist() == list(range(10))


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_self: Any, _name: str) -> _Table:
        raise ConnectionError("no route\nto host")

    _install_hub(monkeypatch, unreachable)
    with pytest.raises(ConfigurationError) as caught:
        fetch_images(HubDataset("set", "image", "label"), 20, 10)
    assert "cannot fetch set through flwr-datasets: no route; check the network" in str(caught.value)
    assert "\n" not in str(caught.value)
