#!/bin/bash
# Installs the worker and the stock Girder packages, at the versions of worker/constraints.txt, into the
# virtual environment that create.sh made. Can be run again to upgrade. Further arguments go to `pip install`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${GIRDER_WORKER_SLURM_VENV:-$here/venv}

if [ ! -x "$venv/bin/python" ]; then
  echo "install.sh: there is no virtual environment in $venv; run $here/create.sh first." >&2
  exit 1
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$here/constraints.txt" "$@" "$here/..[girder]"
"$venv/bin/girder-slurm" --version
echo "install.sh: done; next: settings in $here/worker.local.cfg, then $here/run.sh"
