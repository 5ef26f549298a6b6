"""The transformers of the built-in tasks, as torch modules: pre-norm encoders of a few thousand weights a layer."""

import torch
from torch import nn


class Attention(nn.Module):
    """Self-attention over all tokens (arXiv:1706.03762), its projections of queries, keys and values in one Linear."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, tokens, width) of (N, tokens, width)."""
        _, tokens, width = x.shape
        parts = self.project(x).reshape(-1, tokens, 3, self.heads, width // self.heads)
        query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        weights = torch.softmax(query @ key.transpose(2, 3) * (width // self.heads) ** -0.5, -1)
        joined: torch.Tensor = self.join((weights @ value).transpose(1, 2).reshape(-1, tokens, width))
        return joined


class Block(nn.Module):
    """Attention and a GELU network of twice the width, each behind LayerNormalization and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.before_network = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, tokens, width) of (N, tokens, width)."""
        x = x + self.attention(self.before_attention(x))
        added: torch.Tensor = x + self.network(self.before_network(x))
        return added


class DigitsVit(nn.Module):
    """A vision transformer (arXiv:2010.11929) for images (N, 1, 8, 8): patches of 2x2, a class token, three blocks."""

    def __init__(self, width: int = 48, heads: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        logits: torch.Tensor = self.linear(self.norm(self.blocks(tokens))[:, 0])
        return logits


class NameEncoder(nn.Module):
    """A text encoder for names as numbers of characters, float32 (N, length): two blocks, the mean over tokens.

    Models take float32, so the numbers are made int64 inside.
    """

    def __init__(
        self, vocabulary: int, length: int, classes: int, *, width: int = 48, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes)."""
        tokens = self.embedding(x.to(torch.int64)) + self.positions
        logits: torch.Tensor = self.linear(self.norm(self.blocks(tokens)).mean(1))
        return logits


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images (N, C, H, W), each moved by up to one pixel both ways; what comes in is black."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(images), 1), generator=generator)
    height, width = images.shape[2:]
    rows, columns = rows + torch.arange(height), columns + torch.arange(width)
    return padded[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None]].movedim(
        3, 1
    )
