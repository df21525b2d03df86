"""Pairs of two modalities that find each other among all others.

Source: van den Oord, Li & Vinyals, Representation Learning with Contrastive Predictive Coding, 2018; both ways and with a learned scale
Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021; the sigmoid Zhai et al., Sigmoid Loss
for Language Image Pre-Training, ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.parts import Objective, Site, View

if TYPE_CHECKING:
    from torch import Tensor, nn

# B rows of this rank, N rows of all ranks, D width


class Side(BaseModel):
    """One of the two modalities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Its encoder, by name.")
    input: str = Field(description="Its column.")


class InfoNce(Objective):
    """Each row's two modalities are to be more alike than any two of different rows, of all ranks: negatives are gathered, gradients too.

    `softmax`: the mean of the cross-entropies of finding right from left and left from right. `sigmoid`: every pair by itself is a match or
    none. Rows that lack one of the two are no pairs: they count for nothing and are nobody's negatives.
    """

    wide: ClassVar[bool] = True
    takes_target: ClassVar[bool | None] = False
    judges: ClassVar[str | None] = "pairs"
    metrics: ClassVar[tuple[str, ...]] = ("recall_left_to_right", "recall_right_to_left")

    kind: Literal["info_nce"] = "info_nce"
    left: Side = Field(description="One modality, such as images.")
    right: Side = Field(description="The other, such as texts.")
    width: int = Field(64, ge=1, le=65536, description="Width of the common space.")
    loss_kind: Literal["softmax", "sigmoid"] = Field("softmax", alias="loss", description="How pairs are compared.")
    temperature: float = Field(0.07, gt=0, description="Divides cosines; what a learned one starts from.")
    learn_temperature: bool = Field(True, description="Whether the temperature is learned, down to 0.01.")

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, populate_by_name=True)

    def models(self) -> dict[str, list[str]]:
        """An encoder for each side."""
        return {self.left.model: [self.left.input], self.right.model: [self.right.input]}

    def head(self, site: Site) -> nn.Module:
        """A projection for each side, the scale and, for the sigmoid, the bias; and which rows are there."""
        from trainer.fusion import Pairing

        sides = (self.left, self.right)
        widths = [site.widths[side.model] for side in sides]
        return Pairing(widths, self.width, self.temperature, [site.columns[side.input] for side in sides])

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """All rows; those that are no pairs add nothing."""
        import torch

        some = columns[self.left.input]
        return torch.tensor(float(len(some)), device=some.device)

    def loss(self, view: View) -> Tensor:
        """Float32 whatever the precision of the encoders."""
        import torch

        left_BD, right_BD, there_B = self._pairs(view)
        left_ND, start = view.gather(left_BD)
        right_ND, _ = view.gather(right_BD)
        there_N, _ = view.gather(there_B)
        own_B = torch.arange(start, start + len(left_BD), device=left_BD.device)
        head: Any = view.head()
        scale = head.scale(self.learn_temperature)
        if self.loss_kind == "sigmoid":
            logits_BN = left_BD @ right_ND.T * scale + head.bias(self.temperature)
            sign_BN = -torch.ones_like(logits_BN)
            sign_BN[torch.arange(len(own_B)), own_B] = 1
            matters_BN = (there_B[:, None] & there_N[None]).to(logits_BN.dtype)
            return -(torch.nn.functional.logsigmoid(sign_BN * logits_BN) * matters_BN).sum()
        wanted_B = own_B.masked_fill(~there_B, -1)
        ways = ((left_BD, right_ND), (right_BD, left_ND))
        sums = [
            torch.nn.functional.cross_entropy(
                (mine @ all_ND.T * scale).masked_fill(~there_N[None], float("-inf")), wanted_B, ignore_index=-1, reduction="sum"
            )
            if bool(there_N.any())
            else (mine * 0).sum()
            for mine, all_ND in ways
        ]
        return torch.stack(sums).mean()

    def scores(self, view: View) -> tuple[Tensor, Tensor | None]:
        """`[B, 2, D]`: both sides in the common space; truth 0 for a pair, -1 where a side is missing."""
        import torch

        left_BD, right_BD, there_B = self._pairs(view)
        return torch.stack([left_BD, right_BD], 1), there_B.long() - 1

    def say(self, scores: Any, columns: Mapping[str, Mapping[str, Any]], target: str | None) -> list[Any]:
        """Both vectors of each row."""
        return [{"left": left, "right": right} for left, right in scores.tolist()]

    def _pairs(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        head: Any = view.head()
        sides: Sequence[Side] = (self.left, self.right)
        return head([view.z(side.model, [side.input]) for side in sides], [view.columns[side.input] for side in sides])
