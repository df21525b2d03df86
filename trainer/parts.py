"""What a part is. A part is a frozen model that is its own configuration, with pure methods.

No part file imports torch at the top: documents are checked without it. Methods that compute import
it when they run. Part files never import one another.

Shape suffixes: B rows of a batch, T tasks, K outputs of a head, D width of a representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from trainer.catalog import parser

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor, nn
    from torch.optim import Optimizer as TorchOptimizer

State = dict[str, Any]
"""What a part remembers between calls: goes in, comes out, is saved with the checkpoint. Tensors and JSON values only."""


TARGET = "#target"
"""Among the columns of `Objective.models`: the task's target column, whatever its name."""

ROW = "#row"
"""Among the columns of a View: int64 `[B]`, the number that noise of a row is made from, where an objective draws any."""


class Part(BaseModel):
    """A frozen, strict piece of the document that knows how to do its own job."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    kind: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with some values of a column."""

    problem: str
    """Reads on after 'the values ...', such as 'are not numbers'."""
    remedy: str
    rows: np.ndarray
    """int64 positions of the values, ascending."""
    found: Sequence[str] = ()
    """What was found in the first of `rows`, where the raw value does not say it."""


class Column(Part):
    """A typed column of a dataset: how its values are checked, summarised, encoded and turned into tensors.

    `observe` sees training rows only. Its state must be mergeable over batches in one pass, and
    `finish` turns it into the JSON that travels with the model.
    """

    modality: ClassVar[bool] = False
    """Whether this is an input by nature, as an image is: what equal rows are recognised by."""
    rowwise: ClassVar[bool] = True
    """Whether a row's part of the tensor is the same whatever rows are read with it."""

    source: str | None = Field(None, description="Name of the column in the source, where it differs.")

    def checks(self, values: pa.Array) -> list[Finding]:
        """What is wrong with which of these raw values; empty when nothing is."""
        raise NotImplementedError

    def findings(self, values: pa.Array) -> list[str]:
        """`checks` in words, a line each, with the first row that shows it (counted from 0)."""
        words = []
        for finding in self.checks(values):
            first = int(finding.rows[0])
            found = finding.found[0] if finding.found else repr(values[first].as_py())[:60]
            words.append(f"{len(finding.rows)} of {len(values)} {finding.problem}: row {first} is {found}")
        return words

    def missing(self, values: pa.Array) -> np.ndarray:
        """`[rows]` bool: which raw values are absent."""
        return values.is_null().to_numpy(zero_copy_only=False)

    def observe(self, values: pa.Array, state: State) -> State:
        """Add raw training values to the summary. Starts from `{}`. Raises ValueError for what can't be summarised."""
        raise NotImplementedError

    def finish(self, state: State) -> dict[str, Any]:
        """The summary as JSON: `shape` and `dtype` of one encoded value, and what `encode` and `decode` need.

        Raises ValueError where the training rows don't say enough.
        """
        raise NotImplementedError

    def encode(self, values: pa.Array, fitted: Mapping[str, Any]) -> np.ndarray:
        """Raw values as one fixed-shape array `[rows, *shape]`; missing is NaN, -1 or zeros (see the kind)."""
        raise NotImplementedError

    def tensor(self, encoded: np.ndarray, fitted: Mapping[str, Any]) -> Tensor:
        """Encoded rows as the tensor that models and objectives see."""
        raise NotImplementedError

    def decode(self, values: np.ndarray, fitted: Mapping[str, Any]) -> list[Any]:
        """Predicted values `[rows]` (class index or standardised number) in the units of the source."""
        raise NotImplementedError

    def expected(self) -> dict[str, Any]:
        """What `finish` will say of it as far as the document tells: enough to build a model before a row was read.

        Raises NotImplementedError where only rows tell.
        """
        raise NotImplementedError

    def tally(self, values: pa.Array, encoded: np.ndarray, fitted: Mapping[str, Any], state: State) -> State:
        """Add rows of one split to what the data report says of them. Starts from `{}`."""
        return state

    def describe(self, state: State, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """What the data report says of this column in one split, as JSON."""
        return {}


ColumnField = Annotated[SerializeAsAny[Column], BeforeValidator(parser("column"))]


class Split(BaseModel):
    """Which share of the rows is held out. A row's split depends on its key alone, so new rows never move old ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    valid: float = Field(0.15, ge=0, lt=1, description="Share of rows for validation.")
    test: float = Field(0.15, gt=0, lt=1, description="Share of rows for the final test.")
    salt: str = Field("", description="Change it to draw another split.")


class Dataset(Part):
    """Where rows come from. Batches are streamed: a source may be larger than memory."""

    columns: dict[str, ColumnField] = Field(description="Typed columns, by the name tasks use for them.", min_length=1)
    key: str | list[str] | None = Field(
        None,
        description="Source column(s) that identify a row for the split; by default all declared columns. Rows with one key stay together.",
    )
    split: Split = Field(default_factory=Split, description="Shares held out for validation and test.")
    shard_bytes: int = Field(64 << 20, ge=1 << 12, description="Size at which a prepared shard is closed.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Raw record batches holding the named source columns, in the source's own stable order."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A digest that changes when the bytes behind the source change; cheap (sizes, mtimes, ETags)."""
        raise NotImplementedError

    def faults(self, place: str) -> list[Any]:
        """What can be seen to be wrong without reading rows: a missing file, an unknown column."""
        return []


class Model(Part):
    """A named `nn.Module` that maps its inputs to a representation `[B, D]`, or to a map `[B, D, H, W]`; heads stand on top of it.

    The module takes the input tensors of a task in the order they are named, and has an
    `out_features: int` attribute, D. One that can give tokens `[B, L, D']` takes `tokens=True` too, and has `token_features: int`, D'.
    """

    takes: ClassVar[frozenset[str] | None] = None
    """Kinds of input column it can be used with; None: any."""
    most_inputs: ClassVar[int | None] = None
    """How many input columns it can be used with; None: any number."""
    maps: ClassVar[bool | None] = False
    """Whether it makes a map: its module says so too, by `makes_map = True`. None: only its module tells."""

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A fresh module for inputs described by their fitted columns (`kind`, `shape`, `dtype`, ...)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Site:
    """What a task's head is built on."""

    task: str
    model: str | None
    inputs: Sequence[str]
    target: str | None
    columns: Mapping[str, Mapping[str, Any]]
    """Fitted columns of the task's dataset."""
    widths: Mapping[str, int]
    """`out_features` of the models that the task uses."""
    token_widths: Mapping[str, int]
    """`token_features` of those that can give tokens."""


class View(Protocol):
    """What a wide objective reads of one micro-batch. Nothing is computed twice in a step, whoever asks."""

    task: str
    training: bool
    """Whether this is a training step; else a validation, an evaluation or a prediction."""

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """Tensors `[B, ...]` of the columns at hand; in a prediction the target is not among them."""

    @property
    def target(self) -> Tensor | None:
        """The task's target column, where it has one and it is at hand."""

    def z(self, model: str, columns: Sequence[str], tokens: bool = False) -> Tensor:
        """What a model makes of columns: `[B, D]`, or `[B, L, D]` with `tokens`. Has a graph: detach it where nothing is to flow back."""

    def output(self, task: str) -> Tensor:
        """What the head of a plain task gives on the rows of this micro-batch. Has a graph."""

    def head(self, task: str | None = None) -> nn.Module:
        """The module that the objective of a task made (default: of this one)."""

    def model(self, name: str) -> nn.Module:
        """A model of the document. Never the engine around it: gradients through engine outputs are wrong under ZeRO-3."""

    def objective(self, task: str) -> Objective:
        """The objective of a task that this one reads."""

    def noise(self, width: int, name: str = "") -> Tensor:
        """Standard normal numbers `[B, width]`, float32, a pure function of seed, step and place of the row; others under other names.

        In a prediction the row's `seed`, or its place among the rows, takes the place of seed and step.
        """

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """`rows` `[B, ...]` of all ranks, in rank order, with gradients; and where this rank's begin. B may differ. Collective."""


class Objective(Part):
    """What a task minimises, as a sum over the rows that count and the number of them.

    A plain objective judges what one head makes of one representation: `outputs` (or a `head` of its own), `count`, `total`,
    `predict`. A `wide` one reads what it likes of the step through a View: `models`, `reads`, `rows`, `loss`, `scores`.
    """

    targets: ClassVar[frozenset[str]] = frozenset()
    """Kinds of target column this objective can be used with."""
    wide: ClassVar[bool] = False
    """Whether it reads more than the output of the task's head and the target."""
    takes_target: ClassVar[bool | None] = True
    """Whether a task with it names a target column; None: it may."""
    judges: ClassVar[str | None] = None
    """What its predictions are, for metrics to be chosen by: None: the kind of the target column; '': nothing that is judged."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of a task that names none. Default: those of the kind of the target."""
    draws: ClassVar[bool] = False
    """Whether it reads `View.noise`."""
    looks: ClassVar[bool] = False
    """Whether metrics get `features` of predictions and truths instead of what `scores` gives."""
    double_backward: ClassVar[bool] = False
    """Whether it differentiates a gradient, which ZeRO stage 3 can't do."""

    # --- plain ---------------------------------------------------------------------------------------------------

    takes_maps: ClassVar[bool | None] = None
    """Whether its head stands on a map as it is. None: on a vector, or on the mean and the maximum of a map over its places."""
    counts_rows: ClassVar[bool] = False
    """Whether every row that has a target counts once: then nothing is counted where no target is missing."""

    def outputs(self, target: Mapping[str, Any]) -> int:
        """K, the width of the head for a fitted target column."""
        raise NotImplementedError

    def head(self, site: Site) -> nn.Module | None:
        """A head of its own, called with the representation that the task's model makes; None: linear layers to `outputs`.

        Wide objectives keep what they learn here, and call it themselves.
        """
        return None

    def count(self, target: Tensor) -> Tensor:
        """How many rows of `target` `[B]` count: a float32 scalar. Rows whose target is missing don't."""
        raise NotImplementedError

    def total(self, output_BK: Tensor, target: Tensor) -> Tensor:
        """The loss summed over the rows that count: a scalar with a gradient, 0 when none does."""
        raise NotImplementedError

    def predict(self, output_BK: Tensor) -> Tensor:
        """Scores for metrics: probabilities `[B, K]` for classes, values `[B]` for numbers."""
        raise NotImplementedError

    # --- wide ----------------------------------------------------------------------------------------------------

    def models(self) -> dict[str, list[str]]:
        """Models of the document that it calls itself, each with the columns it gives it."""
        return {}

    def reads(self) -> list[str]:
        """Plain tasks whose outputs it reads, in training, evaluation and prediction."""
        return []

    def teaches(self) -> list[str]:
        """Those of `reads` whose models and heads learn from it."""
        return []

    def also(self) -> list[str]:
        """Columns of the task's dataset that it reads besides those of `models`, the task's input and its target."""
        return []

    def trains(self) -> list[str]:
        """Those of `models` that learn from it where a phase doesn't say."""
        return list(self.models())

    def predicts_with(self) -> list[str]:
        """Those of `models` that `scores` calls: the others are not published, for no prediction needs them."""
        return list(self.models())

    def spares(self) -> list[str]:
        """Columns that predictions can do without, each by itself: an evaluation also judges the task with each of them missing."""
        return []

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """How many rows count: a float32 scalar, known before any forward pass."""
        raise NotImplementedError

    def loss(self, view: View) -> Tensor:
        """The loss summed over this rank's rows that count: a scalar, float32."""
        raise NotImplementedError

    def scores(self, view: View) -> tuple[Tensor, Tensor | None]:
        """Predictions `[B, ...]`, and the truth they are judged against `[B, ...]`; None: the target column.

        Rows whose truth is missing (-1, NaN) are not judged.
        """
        raise NotImplementedError

    def features(self, view: View, values: Tensor) -> Tensor:
        """Predictions or truths `[B, ...]` as metrics get them, `[B, D]` float32, where it `looks`.

        In an evaluation the first joint model looks at what all models predict: what they are compared by is the same.
        """
        raise NotImplementedError

    def say(self, scores: np.ndarray, columns: Mapping[str, Mapping[str, Any]], target: str | None) -> list[Any]:
        """Predictions `[B, ...]` as plain values, a row each, where they are neither a category nor a number.

        `columns` are the fitted columns of the task's dataset.
        """
        return scores.tolist()

    def alone(self) -> Objective:
        """What the task minimises in independent training."""
        return self


class Sync(Part):
    """What is kept of parameters beside the optimiser, after each step of a phase. State in, state out.

    It sees this rank's piece of each parameter, whole or a flat slice of it (ZeRO-3), so it must work number by number. Tensors of its
    state are pieces by parameter name; checkpoints hold them whole, and a run resumed on other ranks cuts them anew.
    """

    of: str = Field(description="Model whose parameters are followed, with the heads that the phase trains on it.")

    def init(self, pieces: Mapping[str, Tensor]) -> State:
        """The state before the first step: pieces by parameter name, and plain values under other names."""
        raise NotImplementedError

    def follow(self, pieces: Mapping[str, Tensor], state: State) -> State:
        """The state after a step that left the parameters at `pieces` (read only)."""
        raise NotImplementedError

    def published(self, whole: Mapping[str, Any]) -> dict[str, Tensor]:
        """Parameters that take the place of the raw ones in the result, from the state with whole tensors; {}: none do."""
        return {}


class Optimizer(Part):
    """Builds a torch optimiser; the learning rate is `lr` times the schedule."""

    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")

    state_names: ClassVar[tuple[str, ...]] = ()
    """Names of the per-parameter state tensors of the optimiser, for checkpoints."""

    def build(self, params: list[nn.Parameter]) -> TorchOptimizer:
        """A torch optimiser over `params`."""
        raise NotImplementedError


class Gram(BaseModel):
    """What the Gramian of the task gradients is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: Literal["representation", "last_layer", "exact"] = Field(
        description="Gradients at the representation; of the weights of the last shared layer; of all shared parameters."
    )
    layer: str | None = Field(
        None, description="Path of the last shared layer inside the model. Default: its last linear or convolutional one."
    )
    point: Annotated[list[str], Field(min_length=1), BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] | None = Field(
        None,
        description="Path of the module inside the model whose output is the balance point, or of several. "
        "Default: what the model hands to `trainer.balance_point`, else its output.",
    )
    columns: int = Field(64, ge=1, le=65536, description="Random directions that the last layer's inputs are projected onto.")
    every: int = Field(1, ge=1, description="Steps between exact Gramians; the steps between use `last_layer`.")


GramField = Annotated[Gram, BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v)]


class Balancer(Part):
    """How the task losses of one step are weighed. Sees losses, and the Gramian of the task gradients if it asks.

    The same numbers reach every rank, so every rank computes the same weights.
    """

    gram: GramField | None = Field(
        None, description="What the Gramian is made of, or the name of its source. Default: what suits the method."
    )
    probe_every: int | None = Field(
        None,
        ge=1,
        description="Steps between exact looks at task gradients: how they conflict, and how near the update is to the exact one.",
    )

    needs_gram: ClassVar[bool] = False
    """Whether `weigh` reads the Gramian."""
    needs_loss: ClassVar[bool] = True
    """Whether `weigh` reads the values of the losses."""
    needs_grads: ClassVar[bool] = False
    """Whether the update at the balance point is made by `combine`, from the task gradients themselves."""
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "representation"
    """What the Gramian is best made of, where the document doesn't say."""
    conflict_free: ClassVar[bool] = False
    """Whether no task gradient has a negative inner product with the update, where task gradients are linearly independent."""
    positive: ClassVar[bool] = True
    """Whether weights are never negative."""

    def asked_gram(self) -> Gram:
        """What its Gramian is made of. Where it reads none, and the task gradients are only looked at, the cheapest."""
        return self.gram or Gram(source=self.default_gram if self.needs_gram else "representation")

    def init(self, tasks: Sequence[str]) -> State:
        """The state before the first step."""
        return {}

    def combine(self, grads_TN: Tensor, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        """The update `[N]` at the balance point, and the next state. Called instead of `weigh` where `needs_grads`.

        Args:
            grads_TN: task gradients at the balance point on this rank, flattened; zeros where the task is absent.
            present_T: bool; which tasks this step has rows of.
        """
        raise NotImplementedError

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        """Weights for one step and the next state.

        Args:
            loss_T: mean loss per task over all ranks, float32, detached; 0 where the task is absent.
            gram_TT: inner products of task gradients, float32, 0 where absent, or None unless `needs_gram`.
            present_T: bool; which tasks this step has rows of.

        Returns:
            weight_T, float32, 0 where absent; the loss that is differentiated is `(weight_T * loss_T).sum()`.
        """
        raise NotImplementedError


class Mixer(Part):
    """Which tasks a step sees: a pure function of (seed, step), never of the rank."""

    def schedule(self, rows_T: np.ndarray, groups_T: Sequence[str], steps: int, seed: int) -> np.ndarray:
        """`[steps, T]` bool, at least one True a row.

        `rows_T` are training rows behind each task, int64; `groups_T` names the dataset of each task.
        """
        raise NotImplementedError

    def steps(self, rows_T: np.ndarray, groups_T: Sequence[str], epochs: float, batch: int) -> int:
        """Optimiser steps that make up `epochs`."""
        raise NotImplementedError


class Metric(Part):
    """How a task is judged. Computed by torchmetrics."""

    higher_is_better: ClassVar[bool] = True
    targets: ClassVar[frozenset[str]] = frozenset()
    """Kinds of target column this metric can be used with."""

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        """The metric over rows: `score` as given by `Objective.predict`, `target` int64 or float32 `[rows]`.

        `classes` is 0 for numbers. NaN where the metric is not defined (one class only, say).
        """
        raise NotImplementedError

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        """`compute` on each of R resamples of the rows at once: `[R]`, NaN where it is not defined.

        `count_RN` says how often each row was drawn, float32 with whole numbers. Only called where
        `compute` is defined. Override it where sums over rows do: one product instead of R calls.
        """
        import torch

        drawn = (torch.repeat_interleave(count_N.long()) for count_N in count_RN)
        return torch.tensor([self.compute(score[rows], target[rows], classes) for rows in drawn])


class Store:
    """Where bytes live, by URI. Not a pydantic part: it is opened from a URI, see `trainer.stores.open_store`.

    Keys are POSIX-like relative paths below the URI the store was opened at.
    """

    uri: str

    def exists(self, key: str) -> bool:
        raise NotImplementedError

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError if there is no such key."""
        raise NotImplementedError

    def write(self, key: str, data: bytes) -> None:
        """Atomic: readers see the old bytes or the new, never a mix."""
        raise NotImplementedError

    def swap(self, key: str, data: bytes, expect: str | None) -> bool:
        """Write only if the current version tag is `expect` (None: only if absent). False if someone was faster."""
        raise NotImplementedError

    def version(self, key: str) -> str | None:
        """An opaque tag that changes with the bytes of `key` (ETag, digest); None if absent."""
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys below `prefix`, sorted."""
        raise NotImplementedError

    def delete(self, prefix: str) -> None:
        """Remove a key, or everything below it."""
        raise NotImplementedError

    def upload(self, folder: Any, prefix: str) -> None:
        """Copy every file of a local folder below `prefix`; `manifest.json`, if there is one, last."""
        raise NotImplementedError

    def fetch(self, key: str, file: Any) -> None:
        """Copy one key to a local file (pathlib.Path). Raises FileNotFoundError if there is no such key."""
        file.write_bytes(self.read(key))

    def clock_s(self) -> float | None:
        """Seconds by which the store's clock is ahead of this machine's; None where it has no clock of its own."""
        return None

    def download(self, prefix: str, folder: Any, wanted: Callable[[str], bool] | None = None) -> Any:
        """A local folder (pathlib.Path) with every file below `prefix`; of several only those whose name is `wanted`.

        A local store returns its own folder without copying; others fill `folder`, skipping files already
        there with the right size and SHA-256 (from `manifest.json` where there is one).
        """
        raise NotImplementedError
