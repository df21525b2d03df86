"""Run the pipeline on this machine with KFP's own local runner: `python -m pipelines.local SPEC ROOT PIPELINE_ROOT`."""

from __future__ import annotations

import sys
import warnings


def main() -> None:
    """Run every step in a process of its own, from this very environment."""
    from trainer.lifeline import follow

    follow()  # SIGTERM ends this process at once, so that it starts no further step
    spec, root, pipeline_root = sys.argv[1:4]
    from kfp import local

    from pipelines.joint import joint

    with warnings.catch_warnings():
        # steps run in this environment; the image they would run in on a cluster is not used
        warnings.simplefilter("ignore", RuntimeWarning)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=pipeline_root, raise_on_error=True)
        joint(spec=spec, root=root)


if __name__ == "__main__":
    main()
