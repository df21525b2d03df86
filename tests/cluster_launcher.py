"""A pipeline step that launches a training job, as a process: ROOT, and the name of its pod."""

from __future__ import annotations

import sys

from cluster_jobs import request, target

from components.cluster import train_there
from components.guard import step
from trainer.errors import CotrainError

if __name__ == "__main__":
    root, pod = sys.argv[1:]
    try:
        with step("train", root):
            train_there(root, request(), target(root, pod))
    except CotrainError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
