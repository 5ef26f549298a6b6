"""Task `cifar10`: photos of 32x32 pixels and a ResNet-20 that was trained elsewhere."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quantization.arrays import AnyArray, FloatArray
from quantization.errors import InvalidDataError
from simulation.data import DataFile, HubDataset, fetch_images, has_data_file, has_hub, read_data_file
from simulation.tasks.model_cache import ModelKey, cached_model
from simulation.tasks.splits import stratified_split
from simulation.tasks.task import ProgressFunction, TaskData

RECIPE = 1
LAB_ROWS = 1_000
_IMAGES, _WEIGHTS = "cifar10_subset.npz", "resnet20_cifar10.npz"
_HUB = HubDataset("uoft-cs/cifar10", "img", "label")
_HUB_ROWS = 5_000
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def to_input(raw: FloatArray) -> FloatArray:
    """Return images of 0..1 as the network takes them, each colour normalised."""
    return np.asarray((raw - MEAN) / STD, np.float32)


def load(seed: int, _variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; the lab has 1,000 of the training images and the field the others."""
    weights = read_data_file(_WEIGHTS, _weight_names(), "cifar10")
    key = ModelKey("cifar10", RECIPE, 0, weights.digest)
    model = cached_model(cache_dir, key, lambda: _export(weights.arrays, on_progress))
    images = _images()
    x, y = _as_images(images.arrays["x_train"]), images.arrays["y_train"].astype(np.int64)
    sizes = (min(LAB_ROWS, len(y) // 5), len(y) - min(LAB_ROWS, len(y) // 5))
    lab, field = stratified_split(y, sizes, np.random.default_rng(seed))
    return TaskData(
        name="cifar10",
        domain="image",
        model=model,
        lab_x=x[lab],
        lab_y=y[lab],
        field_x=x[field],
        field_y=y[field],
        field_owner=None,
        test_x=_as_images(images.arrays["x_test"]),
        test_y=images.arrays["y_test"].astype(np.int64),
        to_input=to_input,
        classes=_CLASSES,
    )


def _images() -> DataFile:
    if not has_data_file(_IMAGES) and has_hub():
        return fetch_images(_HUB, _HUB_ROWS, _HUB_ROWS)
    return read_data_file(_IMAGES, ("x_train", "y_train", "x_test", "y_test"), "cifar10")


def _as_images(pixels: AnyArray) -> FloatArray:
    """Return uint8 pixels (N, 32, 32, 3) as (N, 3, 32, 32) in 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def _weight_names() -> list[str]:
    """Return the names of all arrays that the network has, as torch names them."""
    blocks = [f"layer{stage}.{block}." for stage in (1, 2, 3) for block in (0, 1, 2)]
    norms = ["bn1.", *(f"{block}bn{index}." for block in blocks for index in (1, 2))]
    convs = ["conv1.weight", *(f"{block}conv{index}.weight" for block in blocks for index in (1, 2))]
    stats = [f"{norm}{name}" for norm in norms for name in ("weight", "bias", "running_mean", "running_var")]
    return [*convs, *stats, "linear.weight", "linear.bias"]


def _export(weights: Mapping[str, AnyArray], on_progress: ProgressFunction) -> bytes:
    import torch  # noqa: PLC0415 - a cached model needs no torch

    from server.export import export_torch  # noqa: PLC0415
    from simulation.tasks.networks import ResNet20  # noqa: PLC0415

    on_progress(0.2, "exporting ResNet-20")
    network = ResNet20()
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    try:
        network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise InvalidDataError(
            f"{_WEIGHTS} does not hold the weights of ResNet-20: {str(error).splitlines()[-1].strip()}; copy it again"
        ) from error
    return export_torch(network, torch.zeros(2, 3, 32, 32))
