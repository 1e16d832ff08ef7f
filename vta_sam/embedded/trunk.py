"""The image trunk: one small convolutional net behind the tiny grounder and the tiny encoder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tiny_networks import SHIPPED, Conv, Residual, TinyWeights, fill, read_weights

IMAGE_SIZE = (72, 96)  # height, width of a picture that the trunk is given
HEAT_SIZE = (24, 32)  # height, width of its heat maps
SHIPPED_TRUNK = SHIPPED / "tiny_trunk.safetensors"


class Sight(NamedTuple):
    """What the trunk sees in B pictures, asked for W words.

    heat (B, W, 24, 32): logits, does the thing cover this cell. presence (B, W): logits, is at least a quarter of it
    to be seen. hidden (B, W, hidden): what was read off each thing. embedding (B, Dv): the picture's vector.
    """

    heat: Tensor
    presence: Tensor
    hidden: Tensor
    embedding: Tensor


class Trunk(nn.Module):
    """Pictures (B, 72, 96, 3) uint8 RGB ⇒ :class:`Sight`, for all the words of its table.

    Convolutions to a quarter and an eighth of the picture's size, added top-down to ``features`` per cell. A word is a
    row e of the table; the heat of a cell is its feature's inner product with e. Softmax over the heat pools the
    features where the thing is, and a small net reads presence off what was pooled. The picture's vector is a linear
    map of what was read of every word, weighted by its presence, and of the picture as a whole, then LayerNorm.

    Args:
        words: rows of the table.
        word_dim: length De of a word's vector; each row has norm sqrt(De).
        embedding_dim: length Dv of a picture's vector.
        widths: channels at a half, a quarter and an eighth of the picture's size.
        features: channels of the cells' features.
        hidden: width of the small net that reads the pooled features.
        part_dim, free_dim: what the picture's vector is made of, per word and of the whole.
        folded: without batch normalisation, as :func:`~vta_sam.embedded.tiny_networks.fold` leaves it.
    """

    def __init__(
        self,
        words: int = 10,
        word_dim: int = 32,
        embedding_dim: int = 64,
        widths: tuple[int, int, int] = (24, 48, 96),
        features: int = 64,
        hidden: int = 64,
        part_dim: int = 6,
        free_dim: int = 20,
        folded: bool = False,
    ) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.embedding_dim = embedding_dim
        self.word_dim = word_dim
        self.stem = Conv(3, half, 2, folded)
        self.quarter = Conv(half, quarter, 2, folded)
        self.quarter_more = Residual(quarter, folded)
        self.eighth = Conv(quarter, eighth, 2, folded)
        self.eighth_more = Residual(eighth, folded)
        self.down = nn.Conv2d(eighth, quarter, 1)
        self.cells = Conv(quarter, features, 1, folded)

        self.words = nn.Parameter(nn.init.orthogonal_(torch.empty(words, word_dim)))
        self.ask = nn.Conv2d(features, word_dim, 1)
        self.heat_bias = nn.Parameter(torch.tensor(-3.0))
        self.focus = nn.Parameter(torch.tensor(1.0))  # sharpness of the pooling
        self.read = nn.Sequential(nn.Linear(features + word_dim + 5, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.present = nn.Linear(hidden, 1)
        self.part = nn.Linear(hidden, part_dim)
        self.free = nn.Sequential(nn.Linear(2 * eighth, 2 * free_dim), nn.ReLU(), nn.Linear(2 * free_dim, free_dim))
        self.embed = nn.Linear(words * part_dim + free_dim, embedding_dim)
        self.embed_norm = nn.LayerNorm(embedding_dim)

    def table(self) -> Tensor:
        """The words' vectors ⇒ (words, word_dim), rows of norm sqrt(word_dim)."""
        return F.normalize(self.words, dim=1) * self.word_dim**0.5

    def forward(self, pictures: Tensor) -> Sight:
        return self.see(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)

    def see(self, x: Tensor) -> Sight:
        """The same for pictures (B, 3, 72, 96) already scaled to about [-1, 1]."""
        x = self.quarter_more(F.relu_(self.quarter(F.relu_(self.stem(x)))))
        deep = self.eighth_more(F.relu_(self.eighth(x)))
        cells = F.relu_(self.cells(x + F.interpolate(self.down(deep), size=x.shape[2:], mode="nearest")))
        words = self.table()
        heat = torch.einsum("bdhw,kd->bkhw", self.ask(cells), words) / self.word_dim**0.5 + self.heat_bias
        hidden = self._read(cells, heat, words)
        presence = self.present(hidden)[..., 0]
        parts = self.part(hidden) * presence.sigmoid()[..., None]
        whole = self.free(torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], 1))
        embedding = self.embed_norm(self.embed(torch.cat([parts.flatten(1), whole], 1)))
        heat = F.interpolate(heat, size=HEAT_SIZE, mode="bilinear", align_corners=False)
        return Sight(heat, presence, hidden, embedding)

    def _read(self, cells: Tensor, heat: Tensor, words: Tensor) -> Tensor:
        """Features (B, C, h, w) pooled under each word's heat (B, W, h, w), and read ⇒ (B, W, hidden)."""
        batch, _, height, width = cells.shape
        weight = (heat.flatten(2) * self.focus).softmax(-1)
        pooled = weight @ cells.flatten(2).transpose(1, 2)
        y = torch.linspace(-1, 1, height, device=cells.device).repeat_interleave(width)
        x = torch.linspace(-1, 1, width, device=cells.device).repeat(height)
        place = weight.float() @ torch.stack([x, y, x * x + y * y], 1)
        covered = heat.flatten(2).sigmoid().mean(-1).sqrt()
        facts = torch.cat([place, covered[..., None], heat.flatten(2).amax(-1)[..., None] / 8], -1)
        asked = words.expand(batch, -1, -1)
        return self.read(torch.cat([pooled, asked, facts.to(pooled.dtype)], -1)).relu()


def load_trunk(path: Path | str | None = None) -> tuple[Trunk, TinyWeights]:
    """The trunk of a weights file (default: the shipped one), frozen and ready to look, and what its file says."""
    path = Path(path) if path is not None else SHIPPED_TRUNK
    weights = read_weights(path, "trunk")
    trunk = Trunk(**{**weights.about["sizes"], "folded": True})
    fill(trunk, weights, str(path))
    return trunk.eval().requires_grad_(False).to(memory_format=torch.channels_last), weights
