import numpy as np
import pytest
import torch

from server.export import export_torch
from simulation.tasks.transformers import DigitsVit, NameEncoder, shifted
from simulation.tasks.unicode import LENGTH, encoded, load_rows


def test_names_are_the_same_rows_on_every_machine() -> None:
    x, y = load_rows()
    assert x.shape == (11_199, LENGTH)
    assert len(np.unique(x, axis=0)) == len(x)  # so that no name can be on two sides
    assert np.bincount(y).tolist() == [983, 1117, 4657, 639, 525, 324, 781, 2173]


def test_name_is_read_character_by_character() -> None:
    codes = encoded("DIGIT ONE")
    assert codes.dtype == np.float32
    assert codes[:9].tolist() == [16, 21, 19, 21, 32, 1, 27, 26, 17]
    assert not codes[9:].any()
    assert encoded("A" * LENGTH).tolist() == [13.0] * LENGTH


@pytest.mark.parametrize(
    ("network", "shape"),
    [(DigitsVit(16, 2, 1), (3, 1, 8, 8)), (NameEncoder(39, 12, 8, width=16, blocks=1), (3, 12))],
)
def test_transformers_export_as_they_compute(network: torch.nn.Module, shape: tuple[int, ...]) -> None:
    import models  # noqa: PLC0415

    x = torch.randint(0, 30, shape).to(torch.float32)
    found = models.run(export_torch(network, x), x.numpy())["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, network.eval()(x).numpy(), atol=1e-4)


def test_shifted_images_move_by_at_most_a_pixel() -> None:
    images = torch.zeros(50, 1, 8, 8)
    images[:, 0, 4, 3] = 1.0
    moved = shifted(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    places = {tuple(int(v) for v in np.argwhere(image[0].numpy())[0]) for image in moved}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)}
    assert moved.sum() == 50
