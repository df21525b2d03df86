"""The generator's side of a generative adversarial network.

Sources: Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014; for the losses see gan_spot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.adversarial import Game, fooling
from trainer.parts import TARGET, View

if TYPE_CHECKING:
    from torch import Tensor


class GanFool(Game):
    """Make images that the critic takes for those of the target column. The generator alone learns; its predictions are images."""

    judges: ClassVar[str | None] = "images"
    metrics: ClassVar[tuple[str, ...]] = ("frechet", "manifold_precision", "manifold_recall")
    looks: ClassVar[bool] = True

    kind: Literal["gan_fool"] = "gan_fool"
    judge: str | None = Field(
        None, description="Model that sees images and whose representation metrics compare, trained by another task. Default: pixels."
    )

    def models(self) -> dict[str, list[str]]:
        """The judge sees images alone."""
        return super().models() | ({self.judge: [TARGET]} if self.judge else {})

    def trains(self) -> list[str]:
        """The generator."""
        return [self.maker]

    def predicts_with(self) -> list[str]:
        """The generator: critic and judge are for training and for evaluation."""
        return [self.maker]

    def loss(self, view: View) -> Tensor:
        """Summed over rows, float32. The critic is called as it is: its parameters don't learn here."""
        return fooling(self.loss_kind, self.opinion(view, self.made(view)))

    def scores(self, view: View) -> tuple[Tensor, Tensor | None]:
        """An image for each row."""
        return self.made(view).float(), None

    def features(self, view: View, values: Tensor) -> Tensor:
        """What the judge makes of images `[B, D]`; their pixels where there is none."""
        if self.judge is None:
            return values.flatten(1).float()
        judge = view.model(self.judge)
        return judge(values.to(next(judge.parameters()).dtype)).float()
