"""A launcher as a process of its own, as a pipeline's train step is one: `python tests/cluster_launch.py ROOT KEY`.

Events and the log of rank 0 go to standard output; the last line is what came of it, as JSON.
"""

from __future__ import annotations

import json
import sys

from components.launch import train
from trainer.errors import CotrainError
from trainer.requests import read_request


def main() -> int:
    root, key = sys.argv[1:3]
    try:
        result = train(root, read_request(root, key))
    except CotrainError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return error.exit_code
    print(json.dumps({"folder": str(result.folder), "reused": result.reused}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
