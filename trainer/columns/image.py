"""A picture of fixed size."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from trainer.columns import nested
from trainer.columns.moments import rounded
from trainer.parts import Column, Finding, State

if TYPE_CHECKING:
    from torch import Tensor

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PIECE_BYTES = 4 << 20
_Size = Annotated[int, Field(ge=1, le=1 << 14)]


class Image(Column):
    """Numbers (flat, or nested as rows or channels of rows), or the bytes of an image file that Pillow reads.

    Stored as bytes, 0 to 255 over `range`; the tensor has mean 0 and deviation 1 per channel over the training rows.
    """

    modality: ClassVar[bool] = True

    kind: Literal["image"] = "image"
    shape: Annotated[list[_Size], Field(min_length=3, max_length=3)] = Field(description="[channels, height, width] in the source.")
    range: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        [0.0, 255.0], description="Lowest and highest value of numbers in the source; image files are 0 to 255 anyway."
    )
    size: Annotated[list[_Size], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[height, width] that every image is resized to. Image files may then be of any size."
    )

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: list[float]) -> list[float]:
        if value[0] >= value[1]:
            raise ValueError(f"{value[0]} is not below {value[1]}")
        return value

    def checks(self, values: pa.Array) -> list[Finding]:
        """What is no image of this shape, and numbers outside `range`."""
        values = _plain(values)
        if _is_bytes(values.type):
            return self._check_files(values)
        valid = np.flatnonzero(values.is_valid())
        if not nested.is_list(values.type) or not nested.is_numeric(values.type):
            problem = f"are not images but {values.type}"
            return [Finding(problem, "use lists of numbers, or the bytes of image files", valid)] if len(valid) else []
        bad = nested.misshapen(values, self._shapes())
        found = []
        shape = "x".join(map(str, self.shape))
        if bad.any():
            found.append(Finding(f"are not images of shape {shape}", "correct the rows, or the column's `shape`", np.flatnonzero(bad)))
        low, high = self.range
        slack = 1e-6 * (high - low)
        outside, reach = [], []
        for rows in self._pieces(np.setdiff1d(valid, np.flatnonzero(bad))):
            pixels = nested.stacked(values.take(pa.array(rows)), int(np.prod(self.shape)))
            least, most = pixels.min(1), pixels.max(1)
            out = ~((least >= low - slack) & (most <= high + slack))  # so that NaN is outside
            outside.append(rows[out])
            reach += [f"{a:g} to {b:g}" for a, b in zip(least[out], most[out], strict=True)]
        if outside and len(rows := np.concatenate(outside)):
            found.append(Finding(f"have values outside [{low:g}, {high:g}]", "correct the rows, or the column's `range`", rows, reach))
        return found

    def missing(self, values: pa.Array) -> np.ndarray:
        """Null."""
        return _plain(values).is_null().to_numpy(zero_copy_only=False)

    def observe(self, values: pa.Array, state: State) -> State:
        """Exact sums of the encoded bytes and their squares, per channel."""
        channels = self.shape[0]
        total = np.asarray(state.get("sum", [0] * channels), np.int64)
        squares = np.asarray(state.get("squares", [0] * channels), np.int64)
        there = np.flatnonzero(~self.missing(values))
        for rows in self._pieces(there):
            pixels = self._encode(_plain(values).take(pa.array(rows))).astype(np.int64)
            total, squares = total + pixels.sum((0, 2, 3)), squares + (pixels**2).sum((0, 2, 3))
        return {"images": state.get("images", 0) + len(there), "sum": total.tolist(), "squares": squares.tolist()}

    def finish(self, state: State) -> dict[str, Any]:
        """`mean` and `std` per channel of values in 0..1, over the training rows."""
        shape = self._encoded_shape()
        count = state.get("images", 0) * shape[1] * shape[2]
        if not count:
            raise ValueError("has no image in the training rows")
        mean = [total / count / 255 for total in state["sum"]]
        # whole numbers up to the last division: a difference of large floats would lose what little varies
        spread = [max(0, count * square - total**2) for total, square in zip(state["sum"], state["squares"], strict=True)]
        std = [rounded((value / count**2) ** 0.5 / 255) or 1.0 for value in spread]
        return {"kind": self.kind, "shape": shape, "dtype": "uint8", "mean": [rounded(value) for value in mean], "std": std}

    def expected(self) -> dict[str, Any]:
        """An image of mean 0."""
        shape = self._encoded_shape()
        return {"kind": self.kind, "shape": shape, "dtype": "uint8", "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}

    def encode(self, values: pa.Array, fitted: Mapping[str, Any]) -> np.ndarray:
        """`[rows, C, H, W]` uint8; a missing image is all zeros."""
        values = _plain(values)
        out = np.zeros((len(values), *self._encoded_shape()), np.uint8)
        for rows in self._pieces(np.flatnonzero(values.is_valid())):
            out[rows] = self._encode(values.take(pa.array(rows)))
        return out

    def tensor(self, encoded: np.ndarray, fitted: Mapping[str, Any]) -> Tensor:
        """`[B, C, H, W]` float32, normalised per channel."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(encoded)).reshape(-1, *fitted["shape"])
        mean, std = (torch.tensor(fitted[name], dtype=torch.float32)[:, None, None] for name in ("mean", "std"))
        return pixels.float().mul_(1 / (255 * std)).sub_(mean / std)

    def decode(self, values: np.ndarray, fitted: Mapping[str, Any]) -> list[Any]:
        """Normalised images as nested lists `[C][H][W]` in the units of the source."""
        mean, std = (np.asarray(fitted[name])[:, None, None] for name in ("mean", "std"))
        low, high = self.range
        return ((np.asarray(values, np.float64) * std + mean) * (high - low) + low).tolist()

    def tally(self, values: pa.Array, encoded: np.ndarray, fitted: Mapping[str, Any], state: State) -> State:
        """Sum of the means of images, and images without any contrast."""
        flat = encoded[~self.missing(values)].reshape(-1, int(np.prod(fitted["shape"])))
        blank = int((flat.min(1) == flat.max(1)).sum())
        return {
            "images": state.get("images", 0) + len(flat),
            "sum": state.get("sum", 0) + int(flat.sum(dtype=np.int64)),
            "blank": state.get("blank", 0) + blank,
        }

    def describe(self, state: State, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """`mean` of values in 0..1; `blank`: images of one colour."""
        count = state["images"] * int(np.prod(fitted["shape"]))
        return {"mean": rounded(state["sum"] / count / 255) if count else None, "blank": state["blank"]}

    def _encoded_shape(self) -> list[int]:
        return [self.shape[0], *(self.size or self.shape[1:])]

    def _shapes(self) -> list[list[int]]:
        channels, height, width = self.shape
        return [[channels * height * width], self.shape, *([[height, width]] if channels == 1 else [])]

    def _pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows in runs that fit in memory as float64."""
        step = max(1, _PIECE_BYTES // (8 * int(np.prod(self.shape))))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def _encode(self, values: pa.Array) -> np.ndarray:
        """Images that are there and right."""
        if _is_bytes(values.type):
            return np.stack([self._open(data) for data in values.to_pylist()])
        low, high = self.range
        flat = nested.stacked(values, int(np.prod(self.shape)))
        if flat.dtype != np.uint8 or (low, high) != (0, 255):
            flat = np.rint((flat.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        pixels = flat.reshape(-1, *self.shape)
        return pixels if self.size is None else np.stack([self._resize(image) for image in pixels])

    def _resize(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image as Pillow

        height, width = self.size or self.shape[1:]
        planes = [Pillow.fromarray(plane).resize((width, height), Pillow.Resampling.BILINEAR) for plane in image]
        return np.stack([np.asarray(plane) for plane in planes])

    def _open(self, data: bytes) -> np.ndarray:
        """An image file as uint8 `[C, H, W]`. Raises ValueError, or what Pillow raises."""
        from PIL import Image as Pillow

        with Pillow.open(io.BytesIO(data)) as file:
            if self.size is None and [file.height, file.width] != self.shape[1:]:
                raise ValueError(f"{file.height}x{file.width}")
            picture: Pillow.Image = file
            if file.mode.startswith("I"):  # 16 bits: Pillow would cut them off at 255
                picture = Pillow.fromarray((np.asarray(file).clip(0, 65535) // 257).astype(np.uint8))
            picture = picture.convert(_MODES[self.shape[0]])
            if self.size is not None and [picture.height, picture.width] != self.size:
                picture = picture.resize((self.size[1], self.size[0]), Pillow.Resampling.BILINEAR)
            pixels = np.asarray(picture)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _check_files(self, values: pa.Array) -> list[Finding]:
        from PIL import Image as Pillow

        valid = np.flatnonzero(values.is_valid())
        if self.shape[0] not in _MODES:
            return [Finding(f"are image files, which have no {self.shape[0]} channels", "use 1, 3 or 4 channels", valid)]
        broken: dict[int, str] = {}
        other: dict[int, str] = {}
        for row in valid.tolist():
            try:
                self._open(values[row].as_py())
            except Pillow.UnidentifiedImageError:
                broken[row] = "of no format that is known"
            except ValueError as error:
                other[row] = str(error)
            except (OSError, SyntaxError, EOFError, Pillow.DecompressionBombError) as error:
                broken[row] = str(error)
        shape = "x".join(map(str, self.shape[1:]))
        table = [
            (broken, "are not image files that can be read", "replace the files"),
            (other, f"are image files of another size than {shape}", "correct `shape`, or give a `size` to resize to"),
        ]
        return [Finding(problem, remedy, np.array([*rows], np.int64), [*rows.values()][:5]) for rows, problem, remedy in table if rows]


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _plain(values: pa.Array) -> pa.Array:
    """The bytes inside `{bytes, path}`, which is how Hugging Face datasets keep images."""
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        import pyarrow.compute as pc

        return pc.struct_field(values, "bytes")
    return values
