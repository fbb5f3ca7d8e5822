#!/bin/bash
# Starts the worker. Settings: worker.dist.cfg < worker.local.cfg < environment; nothing in here has to be edited.
# Further arguments go to `celery worker`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${GIRDER_WORKER_SLURM_VENV:-$here/venv}

if [ ! -x "$venv/bin/girder-slurm" ]; then
  echo "run.sh: the worker is not installed in $venv; run $here/create.sh and $here/install.sh first." >&2
  exit 1
fi
if [ -z "${GIRDER_WORKER_SLURM_CONFIG:-}" ]; then
  GIRDER_WORKER_SLURM_CONFIG=$here/../worker.dist.cfg
  for local in "$here/../worker.local.cfg" "$here/worker.local.cfg"; do
    if [ -f "$local" ]; then
      GIRDER_WORKER_SLURM_CONFIG=$GIRDER_WORKER_SLURM_CONFIG:$local
    fi
  done
fi
export GIRDER_WORKER_SLURM_CONFIG
exec "$venv/bin/girder-slurm" worker "$@"
