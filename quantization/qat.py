"""Quantization-aware training on one device: a few epochs of Adam towards labels and the float model's answers.

The rules:

1. Rates are in natural units (`natural_moves`), so that one set of them fits every layer of every model; those of steps
   and biases are less where little is left to learn (`pace`), so that one set fits every start.
2. The loss of a row with a label is cross entropy and distillation, of a row without distillation alone
   (`row_losses`).
3. While rounding is learned, the loss is that of `block_reconstruction` instead, and labels are not looked at. What a
   device reports is the loss of rule 2 all the same, of the model with its weights rounded.
4. Equal arguments give equal bits on one kind of machine.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantization.arrays import FloatArray, IntArray
from quantization.block_reconstruction import BlockReconstruction
from quantization.errors import ConfigurationError
from quantization.qat_model import QatModel, one_thread
from quantization.training_settings import TrainingSettings
from quantization.training_state import TrainedState
from quantization.training_views import draw_views

_FULL_PACE_LOSS = 0.5  # nats a row, from where rates are as they are set
_WARM_UP = 6  # steps until rates are whole: the first of Adam's know no more of a gradient than its sign

__all__ = ["LocalResult", "QatModel", "Rows", "natural_moves", "pace", "row_losses", "train_locally"]


@dataclass(frozen=True, slots=True, eq=False)
class LocalResult:
    """What training on one device gave.

    Attributes:
        state: The trained layers.
        loss: Mean loss per row of the state that training started from, on the measured rows.
        measured: How many rows those were.
    """

    state: TrainedState
    loss: float
    measured: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a device trains on.

    Attributes:
        inputs: float32 (N, ...), finite.
        labels: Class of each row, int64 (N,), -1 where unknown; None without labels.
    """

    inputs: FloatArray
    labels: IntArray | None


def train_locally(
    model: QatModel,
    state: TrainedState,
    rows: Rows,
    settings: TrainingSettings,
    natural_units: Mapping[str, float],
    *,
    keeps_best: bool = False,
) -> LocalResult:
    """Return the state after a few epochs on one device's rows.

    Deterministic: equal arguments give equal bits on one kind of machine. Runs on one thread.

    Args:
        model: Takes the state; what it holds afterwards is nobody's.
        state: Where training starts.
        rows: At least one.
        settings: How.
        natural_units: By layer: step of its 8-bit output, the unit of the bias rate.
        keeps_best: Measure again after each epoch, and return the best state, the start included.

    Raises:
        ConfigurationError: If there are no rows, or the state does not fit the model.
    """
    if len(rows.inputs) == 0:
        raise ConfigurationError("a device without inputs cannot train")
    with one_thread():
        model.load(state)
        run = _LocalRun(model, rows, settings)
        loss, best = run.measure(), dict(state)
        least = loss
        groups = _groups(model, settings, natural_units, pace(loss) if run.measured else 1.0)
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12)
        for number in range(settings.epochs):
            run.epoch(number, optimizer)
            if not keeps_best:
                best = model.state()
            elif (now := run.measure()) < least:
                least, best = now, model.state()
    return LocalResult(best, loss, run.measured)


def pace(loss: float) -> float:
    """Return what rates of steps and biases are multiplied with, by the loss of the state that training starts from.

    The distance to an optimum grows with the root of the loss, near it. Rates that serve a start whose answers have
    little in common with the float model's (2 bits: 1 nat) pass over the optimum of one that answers nearly the same
    (3 bits: 0.08), and end farther from it than they began.
    A step length that follows the loss is Polyak's; see Loizou et al. 2021 (arXiv:2002.10542).

    Args:
        loss: Mean of `row_losses`, >= 0.
    """
    return min(1.0, math.sqrt(max(loss, 0.0) / _FULL_PACE_LOSS))


class _LocalRun:
    """One device's rows, what is drawn of them, and the order they are taken in."""

    def __init__(self, model: QatModel, rows: Rows, settings: TrainingSettings) -> None:
        self.model, self.settings = model, settings
        self.recorded = np.ascontiguousarray(rows.inputs, np.float32)
        labels = np.full(len(rows.inputs), -1, np.int64) if rows.labels is None else rows.labels
        self.labels = torch.from_numpy(np.ascontiguousarray(labels, np.int64))
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.measured = min(len(self.recorded), settings.measured_rows)
        spread = torch.linspace(0, len(self.recorded) - 1, max(1, self.measured)).long()
        self.yardstick = self._batch(torch.from_numpy(self.recorded[spread.numpy()]), self.labels[spread])
        self.prior = _log_prior(self.labels, self.yardstick[1].shape[-1])
        self.blocks = BlockReconstruction(model, self.yardstick[0]) if settings.learns_rounding else None
        self.batches = max(1, round(len(self.recorded) / settings.batch_size))
        self.taken = 0

    def loss(self, inputs: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of some rows."""
        return row_losses(self.model(inputs), reference, labels, self.prior, self.settings).mean()

    def measure(self) -> float:
        """Return the loss on rows that are the same every time; 0 where none are measured."""
        if not self.measured:
            return 0.0
        parts = zip(*(torch.split(tensor, 64) for tensor in self.yardstick), strict=True)
        with torch.no_grad():
            total = sum(float(self.loss(*part)) * len(part[0]) for part in parts)
        return total / self.measured

    def epoch(self, number: int, optimizer: torch.optim.Optimizer) -> None:
        """Take one step per batch, in an order of the seed's."""
        settings = self.settings
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1, np.uint64)[0] >> 2)
        views = draw_views(self.recorded, settings.augmentations, settings.mixing, seed)
        inputs, is_recorded = torch.from_numpy(views.inputs), torch.from_numpy(views.is_recorded)
        labels = torch.where(is_recorded, self.labels, -1)
        order = torch.randperm(len(inputs), generator=self.generator)
        for picked in torch.tensor_split(order, self.batches):
            optimizer.zero_grad()
            if self.blocks is None:
                loss = self.loss(*self._batch(inputs[picked], labels[picked]))
            else:
                loss = self.blocks.loss(inputs[picked], self._progress())
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * self._share_of_rates()
            with natural_moves(self.model, learns_rounding=self.blocks is not None):
                optimizer.step()
            self.model.keep_on_grid()
            self.taken += 1

    def _progress(self) -> float:
        """Return how far the hardening has come at this step."""
        settings = self.settings
        done = self.taken / (settings.epochs * self.batches)
        return settings.hardening_from + done * (settings.hardening_to - settings.hardening_from)

    def _share_of_rates(self) -> float:
        """Return what this step's rates are multiplied with."""
        return 1.0 if self.blocks is None else min(1.0, self.taken / _WARM_UP)

    def _batch(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return inputs, self.model.reference(inputs), labels


@contextmanager
def natural_moves(model: QatModel, *, learns_rounding: bool = False) -> Iterator[None]:
    """Turn what an optimizer does in this context, in units of its own, into movements in natural units.

    * Shadow weights move in steps of their row, and every row's mean movement is taken out, as out of the gradient
      before (gradient centralization, arXiv:2004.01461). Inputs behind a ReLU are positive, so that the weights of a
      row share a gradient that the bias could follow alone. Followed by the weights it turns many codes of a row
      over together, which overshoots by far: without this, training at 2 bits diverges at rates that work with it.
      Learned rounding goes without: weights that are drawn to their codes may have to move a row's mean.
    * Steps move as logarithms: they stay positive, and small ones move as far as large ones. In learned rounding they
      take the weights along, which stay as far from their codes as they are.
    """
    weights, steps = list(model.weights.values()), list(model.steps.values())
    held = [[tensor.detach().clone() for tensor in tensors] for tensors in (weights, steps)]
    for weight in () if learns_rounding else weights:
        if weight.grad is not None:
            weight.grad -= weight.grad.mean(1, keepdim=True)
    yield
    with torch.no_grad():
        for weight, step, before, old_step in zip(weights, steps, *held, strict=True):
            moved = weight - before
            if not learns_rounding:
                moved -= moved.mean(1, keepdim=True)
            growth = torch.exp(step - old_step)
            weight.copy_(before + moved * old_step[:, None])
            if learns_rounding:
                weight.mul_(growth[:, None])
            step.copy_(old_step * growth)


def row_losses(
    logits: Tensor, reference: Tensor, labels: Tensor, prior: Tensor, settings: TrainingSettings
) -> Tensor:
    """Return the loss of each row, (N,).

    Distillation is T^2 KL(reference || model) of answers softened by T (arXiv:1503.02531). The cross entropy of a row
    with a label is taken of logits + log prior, the prior being the device's own share of each class: what a device
    that sees two classes would otherwise learn first is that there are no others (arXiv:2209.00189).

    Args:
        logits: (N, classes).
        reference: (N, classes).
        labels: (N,), -1 for none.
        prior: Log of the device's share of each class, (classes,).
        settings: Weights and temperature.
    """
    t = settings.temperature
    target, answer = functional.log_softmax(reference / t, -1), functional.log_softmax(logits / t, -1)
    distance = t * t * (target.exp() * (target - answer)).sum(-1)
    if settings.label_weight == 0:
        return distance
    has_label = labels >= 0
    entropy = functional.cross_entropy(logits + prior, labels.clamp(min=0), reduction="none")
    labelled = settings.distillation_weight * distance + settings.label_weight * entropy
    return torch.where(has_label, labelled, distance)


def _log_prior(labels: Tensor, classes: int) -> Tensor:
    """Return the log of each class's share of a device's labels; zeros where there are none."""
    known = labels[labels >= 0]
    if len(known) == 0:
        return torch.zeros(classes)
    counts = torch.bincount(known.clamp(max=classes - 1), minlength=classes).float()
    return torch.log((counts + 1e-3) / counts.sum())


def _groups(
    model: QatModel, settings: TrainingSettings, bias_units: Mapping[str, float], pace: float
) -> list[dict[str, Any]]:
    """Return the parameters with their rates; `natural_moves` says what those of weights and steps are in."""
    groups: list[dict[str, Any]] = []
    for name, parameters in model.parameters_by_layer():
        bias_rate = settings.bias_rate * bias_units.get(name, 0.0)
        rates = settings.weight_rate, settings.step_rate * pace, bias_rate * pace
        groups += [
            {"params": [p], "lr": rate, "full_rate": rate}
            for p, rate in zip(parameters, rates, strict=False)
            if p.requires_grad
        ]
    return groups
