"""The critic's side of a generative adversarial network.

Sources: Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014; hinge: Lim & Ye, Geometric GAN, 2017, and Miyato et al., Spectral
Normalization for GANs, ICLR 2018; wasserstein: Arjovsky et al., Wasserstein GAN, ICML 2017, and its gradient penalty Gulrajani et al.,
Improved Training of Wasserstein GANs, NeurIPS 2017; R1: Mescheder, Geiger & Nowozin, Which Training Methods for GANs do actually
Converge?, ICML 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.adversarial import Game, slope, spotting
from trainer.parts import View

if TYPE_CHECKING:
    from torch import Tensor


class GanSpot(Game):
    """Tell the images of the target column from those that the generator makes for the same rows. The critic alone learns."""

    judges: ClassVar[str | None] = ""

    kind: Literal["gan_spot"] = "gan_spot"
    gradient_penalty: float = Field(
        0.0, ge=0, description="Weight of (|slope| - 1)^2 between real and made images; 10 is usual with wasserstein. Not on ZeRO stage 3."
    )
    r1: float = Field(0.0, ge=0, description="Weight of |slope|^2 / 2 at real images. Not on ZeRO stage 3.")

    @property
    def double_backward(self) -> bool:  # type: ignore[override]
        """Penalties differentiate a gradient."""
        return self.gradient_penalty > 0 or self.r1 > 0

    def trains(self) -> list[str]:
        """The critic."""
        return [self.critic]

    def loss(self, view: View) -> Tensor:
        """Summed over rows, float32; nothing flows into the generator."""
        import torch

        real = view.target
        assert real is not None  # of a training step
        with torch.no_grad():
            fake = self.made(view).to(real.dtype)
        # both in one pass: a pass costs much under ZeRO-3, and spectral norms take one step of their iteration in each
        total = spotting(self.loss_kind, *self.opinion(view, torch.cat([real, fake])).split(len(real)))
        if self.gradient_penalty:
            share = torch.special.ndtr(view.noise(1, "between"))[:, :, None, None].to(real.dtype)
            steep_B = slope(lambda x: self.opinion(view, x), torch.lerp(fake, real, share)).norm(dim=1)
            total = total + self.gradient_penalty * (steep_B - 1).square().sum()
        if self.r1:
            total = total + self.r1 / 2 * slope(lambda x: self.opinion(view, x), real).square().sum()
        return total
