"""The networks of the built-in tasks, as torch modules.

Every convolution is followed by BatchNormalization, which the export folds into it.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


def _conv2d(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class DigitsNet(nn.Module):
    """Four convolutions (16, 32, 32, 64) for images (N, 1, 8, 8); 33,338 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv2d(1, 16), *_conv2d(16, 32, stride=2), *_conv2d(32, 32), *_conv2d(32, 64, stride=2)
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10)."""
        logits: torch.Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


class FashionNet(nn.Module):
    """Three convolutions (16, 32, 64) and two max-pools for images (N, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv2d(1, 16), nn.MaxPool2d(2), *_conv2d(16, 32), nn.MaxPool2d(2), *_conv2d(32, 64)
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10)."""
        logits: torch.Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


class HarNet(nn.Module):
    """BatchNormalization of the sensors, then three strided 1-D convolutions (32, 64, 64), for (N, 6, 128).

    While it trains, whole channels are dropped: 5 % of the sensors', so that the model does not hang on one of
    them, and 10 % behind each convolution (arXiv:1411.4280).
    """

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.BatchNorm1d(6), nn.Dropout1d(0.05)]
        for inputs, outputs in ((6, 32), (32, 64), (64, 64)):
            blocks += [nn.Conv1d(inputs, outputs, 5, 2, 2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
            blocks += [nn.Dropout1d(0.1)]
        self.features = nn.Sequential(*blocks)
        self.linear = nn.Linear(64, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 6)."""
        logits: torch.Tensor = self.linear(self.features(x).mean(2))
        return logits


class DepthwiseSeparableNet(nn.Module):
    """DS-CNN for log-mel spectrograms (N, 1, mels, frames), after arXiv:1711.07128."""

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        layers = _conv2d(1, width, kernel=5, stride=2)
        for stride in (2, *[1] * (blocks - 1)):
            layers += _conv2d(width, width, stride=stride, groups=width) + _conv2d(width, width, kernel=1)
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10)."""
        logits: torch.Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


class _ResidualBlock(nn.Module):
    """Two convolutions around a shortcut that has no weights: option A of arXiv:1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(h + x)


class ResNet20(nn.Module):
    """ResNet-20 for images (N, 3, 32, 32), arXiv:1512.03385; 269,722 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        blocks = [_ResidualBlock(inputs, outputs, stride)]
        blocks += [_ResidualBlock(outputs, outputs, 1) for _ in range(2)]
        return nn.Sequential(OrderedDict((str(index), block) for index, block in enumerate(blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10)."""
        h = functional.relu(self.bn1(self.conv1(x)))
        logits: torch.Tensor = self.linear(self.layer3(self.layer2(self.layer1(h))).mean((2, 3)))
        return logits
