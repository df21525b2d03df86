"""What the objectives of a generator and its critic share: names, losses, penalties. Imports torch only where it computes.

Shape suffixes: B rows, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from trainer.parts import TARGET, Objective, Site, View

if TYPE_CHECKING:
    from torch import Tensor, nn

Loss = Literal["non_saturating", "hinge", "wasserstein"]


class Game(Objective):
    """A generator against a critic, over the images of the task's target column.

    Noise belongs to rows (`View.noise`), so a step is the same on any number of ranks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, populate_by_name=True)

    wide: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    targets: ClassVar[frozenset[str]] = frozenset({"image"})

    maker: str = Field(description="Generator: a model that makes images, such as conv_generator.")
    critic: str = Field(description="Critic: a model that gives one number a row, such as conv_critic.")
    condition: list[str] = Field([], description="Category columns that both models see besides.")
    loss_kind: Loss = Field("hinge", alias="loss", description="What the game is about; the same for both sides.")

    def models(self) -> dict[str, list[str]]:
        """The generator sees the condition alone, the critic the image too."""
        return {self.maker: self.condition, self.critic: [TARGET, *self.condition]}

    def head(self, site: Site) -> nn.Module | None:
        """Learns nothing: it turns numbers into normalised images."""
        from trainer import nets

        image = site.columns[site.target or ""]
        width = site.widths.get(self.maker)
        if width != math.prod(image["shape"]):
            raise ValueError(f"model '{self.maker}' makes {width} numbers, and an image has {'x'.join(map(str, image['shape']))}")
        return nets.Canvas(image["shape"], image["mean"], image["std"])

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """All rows."""
        import torch

        return torch.tensor(float(len(columns[target or ""])), device=columns[target or ""].device)

    def made(self, view: View) -> Tensor:
        """An image for each row `[B, C, H, W]`, normalised as the target is. Has a graph."""
        maker: Any = view.model(self.maker)
        flat_BD = maker(*(view.columns[c] for c in self.condition), noise=view.noise(maker.latent))
        return view.head()(flat_BD)

    def opinion(self, view: View, image: Tensor) -> Tensor:
        """What the critic says of images of these rows, once or several times over: `[len(image)]` float32, more is more real."""
        times = len(image) // len(view.noise(0))
        said = (view.columns[c].repeat(times) for c in self.condition)
        return view.model(self.critic)(image, *said).float().squeeze(1)


def spotting(loss: Loss, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """What the critic minimises, summed over rows."""
    from torch.nn.functional import relu, softplus

    if loss == "non_saturating":
        return softplus(-real_B).sum() + softplus(fake_B).sum()
    if loss == "hinge":
        return relu(1 - real_B).sum() + relu(1 + fake_B).sum()
    return fake_B.sum() - real_B.sum()


def fooling(loss: Loss, fake_B: Tensor) -> Tensor:
    """What the generator minimises, summed over rows."""
    from torch.nn.functional import softplus

    return softplus(-fake_B).sum() if loss == "non_saturating" else -fake_B.sum()


def slope(critic: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Gradient of the critic's opinion by each pixel `[B, C*H*W]`, with a graph."""
    import torch

    with torch.enable_grad():
        image = image.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(image).sum(), image, create_graph=True)
    return gradient.flatten(1)
