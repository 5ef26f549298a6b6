"""Training of the small networks: seeded, on the CPU, in seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from quantization.arrays import FloatArray, IntArray
from simulation.tasks.task import ProgressFunction, no_progress

AugmentFunction = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Changes a batch of inputs at random, as its generator says."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained: AdamW (arXiv:1711.05101) with one cycle of the learning rate (arXiv:1708.07120).

    Attributes:
        epochs: Passes over the data.
        batch_size: Rows a step; what is left of an epoch after whole batches is skipped.
        learning_rate: Greatest one of the cycle.
        weight_decay: Share of a weight lost per step, over the learning rate.
        label_smoothing: Share of the target spread over all classes (arXiv:1512.00567).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    label_smoothing: float = 0.0


def train(
    build: Callable[[], nn.Module],
    inputs: FloatArray,
    labels: IntArray,
    recipe: Recipe,
    seed: int,
    *,
    augment: AugmentFunction | None = None,
    on_progress: ProgressFunction = no_progress,
) -> nn.Module:
    """Return a trained network, ready to infer.

    Torch's own random state is left as it was. Runs on one thread: the same seed gives the
    same weights on the same kind of machine, whatever else it does.

    Args:
        build: Makes the network with fresh weights.
        inputs: float32 (N, ...).
        labels: Classes, int64 (N,).
        recipe: How.
        seed: Of weights, order and augmentation.
        augment: Changes each batch.
        on_progress: Told after every epoch.
    """
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        network: nn.Module = build().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _run(network, inputs, labels, recipe, seed=seed, augment=augment, on_progress=on_progress)
    network.eval()
    return network


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch on one thread: such small networks gain nothing by more, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(
    network: nn.Module,
    inputs: FloatArray,
    labels: IntArray,
    recipe: Recipe,
    *,
    seed: int,
    augment: AugmentFunction | None,
    on_progress: ProgressFunction,
) -> None:
    x, y = torch.from_numpy(np.ascontiguousarray(inputs, np.float32)), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(recipe.batch_size, len(x))
    batches = len(x) // batch_size
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * batches
    )
    for epoch in range(recipe.epochs):
        on_progress(epoch / recipe.epochs, f"training, epoch {epoch + 1} of {recipe.epochs}")
        order = torch.randperm(len(x), generator=generator)
        for rows in torch.split(order[: batches * batch_size], batch_size):
            batch = x[rows] if augment is None else augment(x[rows], generator)
            loss = functional.cross_entropy(network(batch), y[rows], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    on_progress(1.0, "trained")
