"""Heads that fuse what several encoders make of several columns, some of which may be missing in a row.

Shape suffixes: B rows, M modalities, L tokens of all modalities, D width, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Presence(nn.Module):
    """Which rows of a column are there: an image of nothing but zeros, a text of nothing but padding are not (see docs/architecture.md)."""

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind = fitted["kind"]
        self.pad = fitted.get("pad", 0)
        if self.kind == "image":  # what 0 was made into, per channel
            nothing = -torch.tensor(fitted["mean"]) / torch.tensor(fitted["std"])
            self.register_buffer("nothing", nothing.view(1, -1, 1, 1).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B]` bool."""
        if self.kind == "image":
            return ((x - self.nothing.to(x)).abs() > 1e-3).flatten(1).any(1)  # type: ignore[operator]
        if self.kind == "text":
            return (x != self.pad).any(1)
        if self.kind == "category":
            return x >= 0
        if self.kind == "number":
            return ~x.isnan()
        return (x != 0).flatten(1).any(1)


class LateFusion(nn.Module):
    """A prediction from each modality that is there, and their mean; of none, what was learned to say then.

    Source: decision-level fusion, Baltrušaitis et al., Multimodal Machine Learning, TPAMI 2019, section 6.
    """

    tokens = False

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for width in widths)
        self.nothing = nn.Linear(1, outputs)

    def forward(self, features: Sequence[Tensor], there_BM: Tensor) -> Tensor:
        """`[B, K]` from `[B, D]` of each modality."""
        each_BMK = torch.stack([head(z_BD) for head, z_BD in zip(self.heads, features, strict=True)], 1)
        share_BM = there_BM.to(each_BMK.dtype)
        mean_BK = (each_BMK * share_BM[..., None]).sum(1) / share_BM.sum(1, keepdim=True).clamp_min(1)
        none_B1 = (~there_BM.any(1, keepdim=True)).to(each_BMK.dtype)
        return mean_BK * (1 - none_B1) + self.nothing(none_B1) * none_B1


class CrossAttention(nn.Module):
    """A learned query attends to the tokens of all modalities that are there, in some layers; then one linear layer.

    Source: a latent query as in Jaegle et al., Perceiver IO, ICLR 2022.
    """

    tokens = True

    def __init__(self, widths: Sequence[int], outputs: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.modality = nn.Embedding(len(widths) + 1, width)  # the last stands for rows of which nothing is there
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers)
        self.query = nn.Embedding(1, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, features: Sequence[Tensor], there_BM: Tensor, tokens_there: Sequence[Tensor | None]) -> Tensor:
        """`[B, K]` from `[B, L, D]` of each modality; `tokens_there` `[B, L]` bool, None where all tokens of a row are."""
        rows = len(there_BM)
        number = torch.arange(len(features) + 1, device=there_BM.device)
        kind_MD = self.modality(number)
        parts = [into(x_BLD) + kind for into, x_BLD, kind in zip(self.into, features, kind_MD, strict=False)]
        hidden = [
            ~(there_BM[:, m, None] & (torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask))
            for m, (x, mask) in enumerate(zip(features, tokens_there, strict=True))
        ]
        memory_BLD = torch.cat([*parts, kind_MD[-1].expand(rows, 1, -1)], 1)
        hidden_BL = torch.cat([*hidden, there_BM.any(1, keepdim=True)], 1)
        query_B1D = self.query(number[:1]).expand(rows, 1, -1)
        return self.out(self.layers(query_B1D, memory_BLD, memory_key_padding_mask=hidden_BL)[:, 0])


class Fuse(nn.Module):
    """Says which modalities are there, drops some in training, and fuses the rest."""

    def __init__(self, presences: Sequence[Presence], fuse: LateFusion | CrossAttention, drop: float) -> None:
        super().__init__()
        self.presences, self.fuse, self.drop = nn.ModuleList(presences), fuse, drop

    def forward(self, columns: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """`[B, K]` from the column of each modality and what its encoder made of it."""
        there_BM = torch.stack([present(x) for present, x in zip(self.presences, columns, strict=True)], 1)
        if self.training and self.drop:
            kept_BM = torch.rand(there_BM.shape, device=there_BM.device) >= self.drop
            # a row from which everything was dropped keeps what it had
            kept_BM |= ~(kept_BM & there_BM).any(1, keepdim=True)
            there_BM = there_BM & kept_BM
        if isinstance(self.fuse, LateFusion):
            return self.fuse(features, there_BM)
        texts = [
            (x != p.pad) if p.kind == "text" and x.shape[1] == z.shape[1] else None  # type: ignore[union-attr]
            for x, z, p in zip(columns, features, self.presences, strict=True)
        ]
        return self.fuse(features, there_BM, texts)


class Pairing(nn.Module):
    """Projections of two modalities onto the unit sphere of one space, and how sharply they are compared."""

    def __init__(self, widths: Sequence[int], width: int, temperature: float, columns: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(w, width, bias=False) for w in widths)
        self.presences = nn.ModuleList(Presence(column) for column in columns)
        # of one element each, not scalars: shards need a dimension
        self.log_scale = nn.Parameter(torch.tensor([1 / temperature]).log())
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, features: Sequence[Tensor], columns: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, D]` of each side, of length 1, float32; and which rows are pairs, `[B]` bool."""
        left_BD, right_BD = (nn.functional.normalize(into(z_BD).float(), dim=-1) for into, z_BD in zip(self.into, features, strict=True))
        there_B = self.presences[0](columns[0]) & self.presences[1](columns[1])
        return left_BD, right_BD, there_B

    def scale(self, learned: bool) -> Tensor:
        """What cosines are multiplied by: at most 100, as in CLIP."""
        log_scale = self.log_scale.float()
        return (log_scale if learned else log_scale.detach()).exp().clamp_max(100.0)

    def bias(self, temperature: float) -> Tensor:
        """What is added to the logits of single pairs: at first nearly all are told apart, as in SigLIP."""
        return self.offset.float() - 10.0


class Decoder(nn.Module):
    """A causal transformer over the tokens of a text that attends to the tokens of another modality."""

    def __init__(self, features: int, vocab: int, longest: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.longest, self.start = longest, vocab
        self.into = nn.Linear(features, width)
        self.token = nn.Embedding(vocab + 1, width)  # the last begins a text
        self.position = nn.Embedding(longest + 1, width)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        self.out = nn.Linear(width, vocab)

    def forward(self, memory_BMD: Tensor, text_BL: Tensor) -> Tensor:
        """Logits `[B, L + 1, V]` of each token of a text and of what comes after the last, given those before."""
        before_BL = nn.functional.pad(text_BL, (1, 0), value=self.start)
        place_L = torch.arange(before_BL.shape[1], device=before_BL.device)
        x_BLD = self.token(before_BL) + self.position(place_L)
        hidden_LL = torch.ones(len(place_L), len(place_L), dtype=torch.bool, device=place_L.device).triu(1)
        return self.out(self.layers(x_BLD, self.into(memory_BMD), tgt_mask=hidden_LL))

    def write(self, memory_BMD: Tensor) -> Tensor:
        """`[B, longest]`: the most probable token after those written, until the end; padded with 0."""
        text_BL = torch.zeros(len(memory_BMD), 0, dtype=torch.int64, device=memory_BMD.device)
        done_B = torch.zeros(len(memory_BMD), dtype=torch.bool, device=memory_BMD.device)
        # as many passes on every rank, however early its texts end: sharded parameters are gathered in step
        for _ in range(self.longest):
            token_B = self(memory_BMD, text_BL)[:, -1].argmax(-1).masked_fill(done_B, 0)
            done_B = done_B | (token_B == 0)
            text_BL = torch.cat([text_BL, token_B[:, None]], 1)
        return text_BL
