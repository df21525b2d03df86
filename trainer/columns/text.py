"""Text as tokens of a vocabulary learned from the training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from trainer.parts import Column, Finding, State

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

_PAD = "<pad>"
_SAMPLE_BYTES = 32 << 20
_LONGEST = 1 << 18
_QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


class Text(Column):
    """Text, as byte-level BPE tokens: no text is unknown. Null, and text of nothing but spaces, is missing: all padding.

    The vocabulary is learned from training rows only: from all their text, or where that is more than 32 MiB from as
    much of it, drawn by the hash of each text, so that it does not depend on the order of the rows.

    Source: Sennrich, Haddow & Birch, Neural Machine Translation of Rare Words with Subword Units, ACL 2016.
    """

    modality: ClassVar[bool] = True
    rowwise: ClassVar[bool] = False  # padded to the longest of the batch

    kind: Literal["text"] = "text"
    max_tokens: int = Field(128, ge=1, le=1 << 20, description="Tokens kept of a row; the rest is cut off.")
    vocab_size: int = Field(8192, ge=257, le=1 << 20, description="Most tokens in the vocabulary: padding, 256 bytes, and what is learned.")
    lowercase: bool = Field(False, description="Treat upper case as lower case.")

    def checks(self, values: pa.Array) -> list[Finding]:
        """What is no text."""
        if _is_text(values.type) or pa.types.is_null(values.type):
            return []
        rows = np.flatnonzero(values.is_valid())
        return [Finding(f"are not text but {values.type}", "use a column of text, or another kind", rows)] if len(rows) else []

    def missing(self, values: pa.Array) -> np.ndarray:
        """Null, and text of nothing but white space."""
        return pc.equal(pc.utf8_trim_whitespace(_plain(values)), "").fill_null(True).to_numpy(zero_copy_only=False)

    def observe(self, values: pa.Array, state: State) -> State:
        """Keep the texts of the smallest hashes, as many as fit. Uses up the state that goes in."""
        kept: dict[str, list[Any]] = state.get("kept", {})
        limit, size = state.get("limit", "g"), state.get("bytes", 0)
        for text in _plain(values).drop_null().to_pylist():
            digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
            if digest in kept:
                kept[digest][1] += 1
            elif digest < limit:
                kept[digest] = [text[:_LONGEST], 1]
                size += _cost(text[:_LONGEST])
        if size > 2 * _SAMPLE_BYTES:
            kept, limit, size = _smallest(kept)
        return {"kept": kept, "limit": limit, "bytes": size}

    def finish(self, state: State) -> dict[str, Any]:
        """`tokenizer`: JSON of the `tokenizers` library; `vocab_size` of what was learned; `pad`."""
        kept = state.get("kept", {})
        if not any(text.strip() for text, _ in kept.values()):
            raise ValueError("has no text in the training rows")
        if state["bytes"] > _SAMPLE_BYTES:
            kept = _smallest(kept)[0]
        tokenizer = self._learn(kept)
        return {
            "kind": self.kind,
            "shape": [self.max_tokens],
            "dtype": "int32",
            "tokenizer": tokenizer.to_str(),
            "vocab_size": tokenizer.get_vocab_size(),
            "pad": 0,
        }

    def expected(self) -> dict[str, Any]:
        """A vocabulary as large as it may be, and no tokenizer."""
        return {"kind": self.kind, "shape": [self.max_tokens], "dtype": "int32", "vocab_size": self.vocab_size, "pad": 0}

    def encode(self, values: pa.Array, fitted: Mapping[str, Any]) -> np.ndarray:
        """`[rows, max_tokens]` int32, filled up with 0."""
        length = fitted["shape"][0]
        tokenizer = _load(fitted["tokenizer"], length)
        out = np.zeros((len(values), length), np.int32)
        there = np.flatnonzero(~self.missing(values))
        texts = _plain(values).take(pa.array(there)).to_pylist()
        for row, encoding in zip(there.tolist(), tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            ids = encoding.ids
            out[row, : len(ids)] = ids
        return out

    def tensor(self, encoded: np.ndarray, fitted: Mapping[str, Any]) -> Tensor:
        """`[B, longest in batch]` int64."""
        import torch

        used = np.flatnonzero((encoded != 0).any(0))
        longest = int(used[-1]) + 1 if len(used) else 1
        return torch.from_numpy(encoded[:, :longest].astype(np.int64))

    def decode(self, values: np.ndarray, fitted: Mapping[str, Any]) -> list[Any]:
        """Text of rows of tokens."""
        tokenizer = _load(fitted["tokenizer"], fitted["shape"][0])
        return tokenizer.decode_batch([[token for token in row if token] for row in np.asarray(values).tolist()], skip_special_tokens=True)

    def tally(self, values: pa.Array, encoded: np.ndarray, fitted: Mapping[str, Any], state: State) -> State:
        """Rows by their number of tokens."""
        lengths = (encoded != 0).sum(1)
        counts = np.bincount(lengths[lengths > 0], minlength=fitted["shape"][0] + 1)
        return {"counts": (counts + np.asarray(state.get("counts", 0))).tolist()}

    def describe(self, state: State, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """`tokens`: quantiles of the length of rows that are there; `full`: rows that take all of `max_tokens`, so may be cut."""
        counts = np.asarray(state["counts"])
        below = np.cumsum(counts)
        total = int(below[-1])
        if not total:
            return {"tokens": None, "full": 0}
        at = {name: int(np.searchsorted(below, share * total)) for name, share in _QUANTILES.items()}
        used = np.flatnonzero(counts)
        return {"tokens": {"min": int(used[0]), **at, "max": int(used[-1])}, "full": int(counts[-1])}

    def _learn(self, kept: Mapping[str, list[Any]]) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        steps = [normalizers.NFC(), *([normalizers.Lowercase()] if self.lowercase else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=2,
            special_tokens=[_PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        # repeats count, but a text that fills half of the rows should not be half of the evidence
        texts = (text for digest in sorted(kept) for text in [kept[digest][0]] * min(kept[digest][1], 16))
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer


def _cost(text: str) -> int:
    """Bytes that a text takes in the sample, about, with what Python adds."""
    return len(text) + 256


def _smallest(kept: Mapping[str, list[Any]]) -> tuple[dict[str, list[Any]], str, int]:
    """The texts of the smallest hashes that make up the sample, the first hash that is out, and their cost."""
    out: dict[str, list[Any]] = {}
    size = 0
    for digest in sorted(kept):
        cost = _cost(kept[digest][0])
        if size + cost > _SAMPLE_BYTES:
            return out, digest, size
        out[digest] = kept[digest]
        size += cost
    return out, "g", size


@lru_cache(maxsize=8)
def _load(text: str, max_tokens: int) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True  # a row that says "<pad>" means the five letters
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(pa.large_string())
