"""One of a fixed set of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from trainer.parts import Column, Finding, State

if TYPE_CHECKING:
    from torch import Tensor

_MOST_CLASSES = 100_000
_NAMED = 5


class Category(Column):
    """A label. Missing is -1, and so is a label that the training rows don't have.

    Labels are compared by how they are written: 4, 4.0 and '4' are one label, so that a CSV file,
    where everything is text, means what a Parquet file means.
    """

    kind: Literal["category"] = "category"
    classes: list[bool | int | str] | Annotated[int, Field(ge=1, le=_MOST_CLASSES)] | None = Field(
        None, description="The labels, or how many (0 to n - 1); others are faults. Default: those of the training rows, sorted."
    )

    @field_validator("classes")
    @classmethod
    def _unique(cls, classes: Any) -> Any:
        if isinstance(classes, list):
            names = [_written(label) for label in classes]
            twice = sorted({name for name in names if names.count(name) > 1}) if len(names) > len(set(names)) else []
            if twice or not names:
                raise ValueError(f"the label {twice[0]!r} is listed twice" if twice else "no label is listed")
        return classes

    def checks(self, values: pa.Array) -> list[Finding]:
        """Labels that are no labels by type, and those outside `classes`."""
        values = _plain(values)
        if not _is_scalar(values.type):
            rows = np.flatnonzero(values.is_valid())
            problem = f"are not labels but {values.type}"
            return [Finding(problem, "use a column of text, whole numbers or booleans", rows)] if len(rows) else []
        found = []
        if pa.types.is_floating(values.type):
            number = values.to_numpy(zero_copy_only=False)
            rows = np.flatnonzero(np.isfinite(number) & (number != np.trunc(number)) | np.isinf(number))
            if len(rows):
                found.append(Finding("are fractions, not labels", "make it `kind: number`, or write whole numbers or text", rows))
        if self.classes is not None:
            keys = _keys(values)
            known = [_written(label) for label in self._declared()]
            rows = np.flatnonzero(pc.and_(keys.is_valid(), pc.invert(pc.is_in(keys, value_set=pa.array(known, pa.string())))))
            rows = np.setdiff1d(rows, found[0].rows) if found else rows
            if len(rows):
                some = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
                problem = f"are none of the {len(known)} classes ({some})"
                found.append(Finding(problem, "correct the rows, or add the label to `classes`", rows))
        return found

    def missing(self, values: pa.Array) -> np.ndarray:
        """Null and NaN."""
        values = _plain(values)
        return pc.is_null(values, nan_is_null=pa.types.is_floating(values.type)).to_numpy(zero_copy_only=False)

    def observe(self, values: pa.Array, state: State) -> State:
        """Counts by label."""
        values = _plain(values)
        counts: dict[str, int] = dict(state.get("counts", {}))
        tally = _keys(values).drop_null().value_counts()
        for key, count in zip(tally.field("values").to_pylist(), tally.field("counts").to_pylist(), strict=True):
            counts[key] = counts.get(key, 0) + count
        if self.classes is None and len(counts) > _MOST_CLASSES:
            raise ValueError(f"has more than {_MOST_CLASSES:,} different labels")
        types = set(state.get("types", []))
        if values.null_count < len(values):
            types.add("bool" if pa.types.is_boolean(values.type) else "int" if _is_number(values.type) else "str")
        return {"counts": counts, "types": sorted(types)}

    def finish(self, state: State) -> dict[str, Any]:
        """The labels in order: as declared, or those seen, sorted."""
        classes: list[Any]
        if self.classes is not None:
            classes = self._declared()
        else:
            keys = list(state.get("counts", {}))
            if not keys:
                raise ValueError("has no label in the training rows")
            if state["types"] == ["int"]:
                classes = sorted(map(int, keys))
            elif state["types"] == ["bool"]:
                classes = sorted(key == "true" for key in keys)
            else:
                classes = sorted(keys)
        return {"kind": self.kind, "shape": [], "dtype": "int32", "classes": classes}

    def expected(self) -> dict[str, Any]:
        """The declared labels. Raises NotImplementedError where none are declared."""
        if self.classes is None:
            raise NotImplementedError
        return {"kind": self.kind, "shape": [], "dtype": "int32", "classes": self._declared()}

    def encode(self, values: pa.Array, fitted: Mapping[str, Any]) -> np.ndarray:
        """`[rows]` int32: position in `classes`, -1 where missing or not among them."""
        known = pa.array([_written(label) for label in fitted["classes"]], pa.string())
        index = pc.index_in(_keys(_plain(values)), value_set=known, skip_nulls=True)
        return index.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)

    def tensor(self, encoded: np.ndarray, fitted: Mapping[str, Any]) -> Tensor:
        """`[B]` int64."""
        import torch

        return torch.from_numpy(np.asarray(encoded).astype(np.int64))

    def decode(self, values: np.ndarray, fitted: Mapping[str, Any]) -> list[Any]:
        """Labels of class indices; None for -1."""
        classes = fitted["classes"]
        return [classes[index] if index >= 0 else None for index in np.asarray(values).astype(int).tolist()]

    def tally(self, values: pa.Array, encoded: np.ndarray, fitted: Mapping[str, Any], state: State) -> State:
        """Rows per class, and labels that training rows don't have."""
        counts = np.bincount(encoded[encoded >= 0], minlength=len(fitted["classes"])) + np.asarray(state.get("counts", 0))
        strange = np.flatnonzero((encoded < 0) & ~self.missing(values))
        names = set(state.get("unseen_labels", [])) | set(_keys(_plain(values)).take(pa.array(strange)).to_pylist())
        return {"counts": counts.tolist(), "unseen": state.get("unseen", 0) + len(strange), "unseen_labels": sorted(names)[:_NAMED]}

    def describe(self, state: State, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """`balance`: rows per class; `unseen`: rows whose label no training row has, and the first such labels."""
        balance = {_written(label): count for label, count in zip(fitted["classes"], state["counts"], strict=True)}
        return {"balance": balance, "unseen": state["unseen"], "unseen_labels": state["unseen_labels"]}

    def _declared(self) -> list[Any]:
        return list(range(self.classes)) if isinstance(self.classes, int) else list(self.classes or [])


def _written(label: bool | int | str) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _keys(values: pa.Array) -> pa.Array:
    """Labels as they are written, null where missing."""
    if pa.types.is_floating(values.type):
        number = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        whole = np.isfinite(number) & (number == np.trunc(number)) & (np.abs(number) < 2**63)
        as_int = pa.array(np.where(whole, number, 0).astype(np.int64)).cast(pa.string())
        as_float = pc.if_else(pa.array(np.isnan(number)), None, values.cast(pa.string()))
        return pc.if_else(pa.array(whole), as_int, as_float)
    return values.cast(pa.string())
