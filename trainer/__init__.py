"""cotrain: train models jointly, and prove per task that it paid off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.predict import Predictor

__all__ = ["balance_point", "load"]


def balance_point(z: Tensor) -> Tensor:
    """Say that task gradients are to be compared here, in a model of your own. Returns `z` as it is.

    Called in the forward pass, once or several times (after each of several encoders, say): the Gramians add up. Outside
    of balanced training it does nothing. See docs/balancing.md.

    Raises:
        LaunchError: inside an activation checkpoint with `use_reentrant=True`, which autograd can't look into.
    """
    from trainer.points import mark  # here, so that `import trainer` does not import torch

    return mark(z)


def load(uri: str, device: str = "cpu") -> Predictor:
    """A trained model, ready to predict from raw rows.

    Args:
        uri: a published model (`.../models/<name>`: its champion), one of its versions
            (`.../models/<name>/versions/<version>`), or the folder of a training result; a path, `file://` or `s3://`.
        device: a torch device.

    Raises:
        StoreError: if there is no such model, or its files are not what its manifest says.

    Example:
        >>> import trainer
        >>> model = trainer.load("runs/models/digits")  # doctest: +SKIP
        >>> model.predict([{"image": [[0, 0, 5], ...]}])  # doctest: +SKIP
        [{'digit': {'value': 3, 'probabilities': {...}}, 'ink': {'value': 12.3}}]
    """
    from trainer.predict import load as load_predictor  # here, so that `import trainer` does not import torch

    return load_predictor(uri, device)
