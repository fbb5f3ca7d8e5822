#!/bin/bash
# Starts the worker. Nothing in here has to be edited.
set -euo pipefail

usage() {
  cat <<EOF
usage: worker/run.sh [--help] [CELERY ARGUMENT...]

Starts the worker in the foreground; when it takes tasks it says \`ready\`. SIGTERM or Ctrl-C stops it, and no Slurm
job with it. Further arguments go to \`celery worker\`.

Settings, the later ones win: worker.dist.cfg, worker.local.cfg beside it, worker/worker.local.cfg, environment.
GIRDER_WORKER_SLURM_CONFIG names other files, separated by colons; GIRDER_WORKER_SLURM_VENV another environment.
EOF
}
case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac

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
