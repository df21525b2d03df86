from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CODE = """
import json, sys
import pyarrow as pa, pyarrow.csv, pyarrow.parquet
from trainer import catalog
from trainer.prepare import prepare

dataset = catalog.parser("dataset")(json.loads(sys.argv[1]))


def peak_bytes():  # of this program: getrusage() also remembers the process that started it
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


before = peak_bytes()
prepare("big", dataset, sys.argv[2])
print(peak_bytes() - before)
"""


def vectors(path):
    """A few MB of compressed rows that are 123 MB as they are encoded."""
    width, rows = 256, 120_000
    one = pa.array(np.tile(np.arange(width, dtype=np.float32), 1000))
    schema = pa.schema([("vector", pa.list_(pa.float32(), width)), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for start in range(0, rows, 1000):
            vector = pa.FixedSizeListArray.from_arrays(one, width)
            file.write_batch(pa.record_batch([vector, pa.array(np.arange(start, start + 1000))], schema=schema))
    return {"vector": {"kind": "vector", "size": width}, "label": {"kind": "number"}}


def lines(path, line, head=""):
    """130 MB of lines."""
    filler = "lorem ipsum dolor sit amet " * 25
    with path.open("w") as file:
        file.write(head)
        file.writelines(line(row, filler) for row in range(190_000))
    return {"label": {"kind": "number"}}


SOURCES = {
    "vectors.parquet": vectors,
    "rows.csv": lambda path: lines(path, lambda row, filler: f'"{filler}",{row}\n', "text,label\n"),
    "rows.jsonl": lambda path: lines(path, lambda row, filler: json.dumps({"text": filler, "label": row}) + "\n"),
}
BUDGET_BYTES = 90e6


@pytest.mark.parametrize("name", SOURCES)
def test_memory_is_bounded_by_shards_and_batches_and_not_by_the_source(name, tmp_path):
    path = tmp_path / name
    columns = SOURCES[name](path)
    key = None if path.suffix == ".parquet" else ["text", "label"]
    spec = {"kind": path.suffix[1:], "uri": str(path), "columns": columns, "key": key, "shard_bytes": 1 << 20}
    command = [sys.executable, "-c", CODE, json.dumps(spec), str(tmp_path / "runs")]
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    made = sum(file.stat().st_size for file in (tmp_path / "runs").rglob("*.arrow"))
    assert max(path.stat().st_size, made) > 120e6
    assert int(done.stdout) < BUDGET_BYTES
