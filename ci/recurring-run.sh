#!/bin/sh
# A recurring run of Kubeflow Pipelines: every night at half past two, one at a time, nights that were missed are not made up for.
# The document is read anew each night, and what has not changed since is not done again. Run it again to change it.
#
#   KFP_ENDPOINT=... COTRAIN_ROOT=s3://lake/cotrain COTRAIN_IMAGE=...@sha256:... sh ci/recurring-run.sh s3://lake/jobs/reviews.yaml reviews
set -eu

SPEC=$1
NAME=$2

cotrain check "$SPEC"
cotrain schedule create "$SPEC" --name "$NAME" --cron "30 2 * * *" --max-concurrency 1 --no-catch-up
cotrain schedule list
