"""What the report shows of one prepared dataset, from its report.json, fitted.json and manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.wording import many, number, share, short

Json = dict[str, Any]
SPLITS = ("train", "valid", "test")
_CLASSES = 12
_LABELS = 5


def dataset(name: str, entry: Mapping[str, Json], spec: Json) -> Json:
    """All that is shown of one dataset. A report that lacks something leaves it out of the page."""
    report, fitted = entry.get("report") or {}, entry.get("fitted") or {}
    rows = report.get("rows") or (entry.get("manifest") or {}).get("rows") or {}
    total = sum(rows.values()) or 1
    said = (spec.get("data") or {}).get(name) or {}
    columns = report.get("columns") or {column: {"kind": found.get("kind", ""), "splits": {}} for column, found in fitted.items()}
    return {
        "name": name,
        "source": " ".join(str(said[key]) for key in ("kind", "uri", "path") if said.get(key)),
        "rows": sum(rows.values()),
        "splits": [{"name": split, "rows": n, "share": n / total, "width": f"{100 * n / total:.2f}"} for split, n in rows.items()],
        "findings": [
            *_duplicates(report.get("duplicates") or {}),
            *_modalities(report.get("modalities")),
            *_pairs(report.get("pairs")),
            *_unseen(columns),
        ],
        "columns": [_column(column, found, fitted.get(column) or {}) for column, found in columns.items()],
        "balances": [balance for column, found in columns.items() if (balance := _balance(column, found.get("splits") or {}))],
    }


def _column(name: str, found: Json, fitted: Json) -> Json:
    splits = found.get("splits") or {}
    missing = {split: splits[split].get("missing", 0) for split in SPLITS if split in splits}
    parts = {split: splits[split].get("missing_share") for split in missing}
    return {
        "name": name,
        "kind": found.get("kind", ""),
        "about": _about(splits.get("train") or {}, fitted),
        "missing": [{"n": n, "share": share(parts[split]) if n and parts[split] is not None else ""} for split, n in missing.items()],
    }


def _about(train: Json, fitted: Json) -> str:
    """The training rows of a column in a few words."""
    told = []
    if fitted.get("classes") is not None:
        told.append(many(len(fitted["classes"]), "class", "classes"))
    if "std" in train and train.get("mean") is not None:
        told.append(f"mean {short(train['mean'])}, std {short(train['std'])}, from {short(train.get('min'))} to {short(train.get('max'))}")
    elif train.get("mean") is not None:
        told.append(f"mean {short(train['mean'])}")
    if boxes := train.get("boxes"):
        told.append(f"{many(boxes['boxes'], 'box', 'boxes')}, at most {boxes['most']:,} in a row, in {many(boxes['empty'], 'row')} none")
    if fitted.get("vocab_size"):
        told.append(f"vocabulary {fitted['vocab_size']:,}")
    tokens = train.get("tokens") or {}
    if tokens:
        told.append("tokens " + ", ".join(f"{key} {short(n)}" for key, n in tokens.items()))
    if train.get("full"):
        told.append(f"{many(train['full'], 'row')} may be cut")
    if train.get("blank"):
        told.append(f"{many(train['blank'], 'image')} of one colour")
    if train.get("partial"):
        told.append(f"{many(train['partial'], 'row')} with gaps")
    if isinstance(fitted.get("shape"), list) and len(fitted["shape"]) == 3:
        told.append(" × ".join(str(side) for side in fitted["shape"]))
    return "; ".join(told)


def _finding(well: bool, text: str, examples: Any = None) -> Json:
    shown = ", ".join("row " + " = row ".join(f"{row:,} ({split})" for row, split in group) for group in (examples or [])[:2])
    return {"well": well, "text": text, "examples": shown}


def _duplicates(found: Json) -> list[Json]:
    """Rows that are equal in the inputs: across splits they flatter the scores, with other labels they can't be learnt."""
    if not found:
        return []
    by = f" by {', '.join(found['columns'])}" if found.get("columns") else ""
    leaks = {pair: entry for pair, entry in (found.get("across") or {}).items() if entry.get("rows")}
    told = []
    for pair, entry in leaks.items():
        earlier, later = pair.split("-", 1)
        told.append(
            _finding(False, f"{many(entry['rows'], 'row')} of {later} equal a row of {earlier}, compared{by}", entry.get("examples"))
        )
    if not leaks and "across" in found:
        told.append(_finding(True, f"No row of one split equals a row of another, compared{by}"))
    conflicts = found.get("conflicts") or {}
    if conflicts.get("groups"):
        text = f"{many(conflicts['groups'], 'group')} of equal rows have different labels ({many(conflicts['rows'], 'row')})"
        told.append(_finding(False, text, conflicts.get("examples")))
    within = ", ".join(f"{n:,} in {split}" for split, n in (found.get("within") or {}).items() if n)
    if within:
        told.append(_finding(not leaks, f"Repeats of an earlier row of the same split: {within}"))
    return told


def _modalities(found: Json | None) -> list[Json]:
    if not found:
        return []
    gaps = {column: entry["rows"] for column, entry in (found.get("missing") or {}).items() if entry.get("rows")}
    if not gaps:
        return [_finding(True, f"Every row has all of {', '.join(found.get('columns') or [])}")]
    told = [_finding(False, "Rows that lack a modality: " + ", ".join(f"{n:,} lack {column}" for column, n in gaps.items()))]
    if found.get("none"):
        told.append(_finding(False, f"{many(found['none'], 'row')} without any modality"))
    return told


def _pairs(found: Json | None) -> list[Json]:
    """Values of one modality that stand beside different ones of another: some may be mismatched."""
    return [
        _finding(False, f"{many(entry['groups'], f'value of {name}', f'values of {name}')} with different partners", entry.get("examples"))
        for name, entry in (found or {}).items()
        if entry["groups"]
    ]


def _unseen(columns: Mapping[str, Json]) -> list[Json]:
    told = []
    for name, found in columns.items():
        for split, entry in (found.get("splits") or {}).items():
            if entry.get("unseen"):
                labels = ", ".join(str(label) for label in (entry.get("unseen_labels") or [])[:_LABELS])
                told.append(_finding(False, f"{many(entry['unseen'], 'row')} of {split} have a {name} that no training row has: {labels}"))
    return told


def _balance(name: str, splits: Mapping[str, Json]) -> Json | None:
    """Classes by their share of the training rows, with their share of the test rows; of many classes the largest."""
    train, test = ((splits.get(split) or {}).get("balance") or {} for split in ("train", "test"))
    total, tested = sum(train.values()), sum(test.values())
    if not total:
        return None
    # few classes keep their own order, which may mean something: 1 to 5 stars
    order = list(train) if len(train) <= _CLASSES else sorted(train, key=lambda label: -train[label])
    top = 1.02 * max(max(train.values()) / total, max(test.values(), default=0) / (tested or 1))
    shown = [
        {
            "label": str(label),
            "rows": train[label],
            "share": train[label] / total,
            "width": f"{100 * train[label] / total / top:.1f}",
            "test": f"{100 * number(test.get(label, 0)) / tested / top:.1f}" if tested else None,
            "test_share": number(test.get(label, 0)) / tested if tested else None,
        }
        for label in order[:_CLASSES]
    ]
    rest = order[_CLASSES:]
    return {
        "name": name,
        "classes": len(order),
        "shown": shown,
        "rest": len(rest),
        "rest_share": sum(train[label] for label in rest) / total,
    }
