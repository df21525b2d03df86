"""One prediction from several modalities, some of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.parts import Objective, Site, View

if TYPE_CHECKING:
    from torch import Tensor, nn

# B rows, K outputs


class Fused(Objective):
    """Cross-entropy of a category, or squared error of a number, predicted from what an encoder makes of each column.

    `late`: each modality predicts, and those that are there are averaged. `cross_attention`: a query attends to the tokens of all that are
    there. A modality is missing in a row as its column says (docs/architecture.md); `drop` also hides present ones in training, so that
    the others learn to do without (Neverova et al., ModDrop, TPAMI 2016).
    """

    wide: ClassVar[bool] = True
    targets: ClassVar[frozenset[str]] = frozenset({"category", "number"})

    kind: Literal["fused"] = "fused"
    encoders: dict[str, str] = Field(min_length=2, description="Encoder of each column: `{image: vision, question: language}`.")
    how: Literal["late", "cross_attention"] = Field("late", description="How modalities are fused.")
    drop: float = Field(0.0, ge=0, lt=1, description="Share of modalities hidden in training, each by itself; never all of a row.")
    width: int = Field(64, ge=1, le=65536, description="Width of the attention.")
    heads: int = Field(4, ge=1, description="Attention heads; divides the width.")
    layers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Layers of attention.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Fused:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if len(set(self.encoders.values())) < len(self.encoders):
            raise ValueError("encoders name a model twice: a model takes one column here")
        return self

    def models(self) -> dict[str, list[str]]:
        """An encoder for each column."""
        return {model: [column] for column, model in self.encoders.items()}

    def spares(self) -> list[str]:
        """Each modality."""
        return list(self.encoders)

    def head(self, site: Site) -> nn.Module:
        """Which modalities are there, and their fusion."""
        from trainer import fusion
        from trainer.errors import LaunchError

        target = site.columns[site.target or ""]
        outputs = len(target["classes"]) if target["kind"] == "category" else 1
        presences = [fusion.Presence(site.columns[column]) for column in self.encoders]
        widths = site.widths if self.how == "late" else site.token_widths
        for model in self.encoders.values():
            if model not in widths:
                place = f"tasks.{site.task}.objective.encoders"
                raise LaunchError.at(place, f"model '{model}' gives no tokens to attend to", "write how: late, or another model")
        chosen = [widths[model] for model in self.encoders.values()]
        fuse = (
            fusion.LateFusion(chosen, outputs)
            if self.how == "late"
            else fusion.CrossAttention(chosen, outputs, self.width, self.heads, self.layers)
        )
        return fusion.Fuse(presences, fuse, self.drop)

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """Rows with a target."""
        import torch

        truth = columns[target or ""]
        return (~truth.isnan() if truth.is_floating_point() else truth >= 0).sum(dtype=torch.float32)

    def loss(self, view: View) -> Tensor:
        """Float32 whatever the precision of the encoders."""
        import torch

        output_BK, truth = self._output(view).float(), view.target
        assert truth is not None  # there is one in training
        if truth.is_floating_point():
            value_B = output_BK[:, 0]
            return torch.nn.functional.mse_loss(value_B, torch.where(truth.isnan(), value_B.detach(), truth), reduction="sum")
        return torch.nn.functional.cross_entropy(output_BK, truth, ignore_index=-1, reduction="sum")

    def scores(self, view: View) -> tuple[Tensor, Tensor | None]:
        """Probabilities `[B, K]`, or standardised values `[B]`."""
        output_BK = self._output(view).float()
        return (output_BK.softmax(-1) if output_BK.shape[1] > 1 else output_BK[:, 0]), None

    def _output(self, view: View) -> Tensor:
        head: Any = view.head()
        tokens = self.how == "cross_attention"
        columns = [view.columns[column] for column in self.encoders]
        return head(columns, [view.z(model, [column], tokens) for column, model in self.encoders.items()])
