"""A model of the user's own: `kind: package.module:function`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from trainer.catalog import load
from trainer.errors import LaunchError
from trainer.parts import Model

if TYPE_CHECKING:
    from torch import nn


class PythonModel(Model):
    """Calls `function(inputs, **args)`, which returns an `nn.Module` with `out_features`, and `makes_map = True` where it makes maps.

    `inputs` is a list of fitted columns (`kind`, `shape`, `dtype`, ...), one for each input of the task.
    """

    maps: ClassVar[bool | None] = None

    kind: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="`package.module:function`.")
    args: dict[str, Any] = Field({}, description="Keyword arguments of the function.")

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """The module that the function returns.

        Raises:
            LaunchError: if what it returns has no `out_features`.
        """
        module = load(self.kind)(list(inputs), **self.args)
        if not isinstance(getattr(module, "out_features", None), int):
            raise LaunchError.at(
                self.kind,
                f"returned {type(module).__name__} without an integer `out_features`",
                "set `self.out_features` to the width of its output",
            )
        return module
