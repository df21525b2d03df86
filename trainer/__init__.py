"""cotrain: train models jointly, and prove per task that it paid off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.predict import Predictor

__all__ = ["load"]


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
