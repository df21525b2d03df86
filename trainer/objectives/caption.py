"""Texts written from what another modality shows, token by token.

Source: Vinyals et al., Show and Tell, CVPR 2015; with a transformer that attends to image tokens Li et al., BLIP, ICML 2022, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.parts import Objective, Site, View

if TYPE_CHECKING:
    from torch import Tensor, nn

# B rows, L tokens of a text, V vocabulary


class Caption(Objective):
    """Cross-entropy of each next token of the text, given those before it and the tokens of the encoder; summed over tokens.

    A text ends with its first padding, which is predicted too. Rows without a text don't count.
    """

    wide: ClassVar[bool] = True
    targets: ClassVar[frozenset[str]] = frozenset({"text"})
    judges: ClassVar[str | None] = "tokens"
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "token_accuracy")

    kind: Literal["caption"] = "caption"
    model: str = Field(description="Encoder whose tokens are written about.")
    input: str = Field(description="Its column.")
    width: int = Field(64, ge=1, le=65536, description="Width of the decoder.")
    heads: int = Field(4, ge=1, description="Attention heads; divides the width.")
    layers: int = Field(2, ge=1, le=64, description="Layers of the decoder.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Caption:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self

    def models(self) -> dict[str, list[str]]:
        """The encoder."""
        return {self.model: [self.input]}

    def head(self, site: Site) -> nn.Module:
        """A causal decoder over the vocabulary of the text."""
        from trainer.errors import LaunchError
        from trainer.fusion import Decoder

        if self.model not in site.token_widths:
            place = f"tasks.{site.task}.objective.model"
            raise LaunchError.at(place, f"model '{self.model}' gives no tokens to write about", "name another model")
        text = site.columns[site.target or ""]
        return Decoder(site.token_widths[self.model], text["vocab_size"], text["shape"][0], self.width, self.heads, self.layers)

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """Tokens that are predicted: those of the texts, and an end for each text that has one."""
        import torch

        text_BL = columns[target or ""]
        there_B = (text_BL != 0).any(1)
        return (text_BL != 0).sum(dtype=torch.float32) + there_B.sum(dtype=torch.float32)

    def loss(self, view: View) -> Tensor:
        """Float32 whatever the precision of the decoder."""
        import torch

        text_BL = view.target
        assert text_BL is not None  # there is one in training
        head: Any = view.head()
        logits_BLV = head(view.z(self.model, [self.input], tokens=True), text_BL).float()
        wanted_BL = torch.nn.functional.pad(text_BL, (0, 1))
        there_BL = wanted_BL != 0
        length_B = there_BL.sum(1)
        place_L = torch.arange(wanted_BL.shape[1], device=wanted_BL.device)
        matters_BL = (place_L[None] <= length_B[:, None]) & (length_B > 0)[:, None]
        return torch.nn.functional.cross_entropy(
            logits_BLV.transpose(1, 2), wanted_BL.masked_fill(~matters_BL, -1), ignore_index=-1, reduction="sum"
        )

    def scores(self, view: View) -> tuple[Tensor, Tensor | None]:
        """`[B, max_tokens]`: the most probable next token again and again, 0 from the end on; truth -1 in rows without a text."""
        import torch

        head: Any = view.head()
        written_BL = head.write(view.z(self.model, [self.input], tokens=True))
        truth_BL = view.target
        if truth_BL is not None:
            truth_BL = torch.nn.functional.pad(truth_BL, (0, written_BL.shape[1] - truth_BL.shape[1]))
            truth_BL = truth_BL.masked_fill((truth_BL == 0).all(1, keepdim=True), -1)
        return written_BL.float(), truth_BL

    def say(self, scores: Any, columns: Mapping[str, Mapping[str, Any]], target: str | None) -> list[Any]:
        """Texts."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(columns[target or ""]["tokenizer"])
        return tokenizer.decode_batch([[int(token) for token in row if token] for row in scores.tolist()], skip_special_tokens=True)
