#!/bin/bash
# Installs the worker into the virtual environment that create.sh made.
set -euo pipefail

usage() {
  cat <<EOF
usage: worker/install.sh [--help] [PIP ARGUMENT...]

Installs the worker and the stock Girder packages, at the versions of worker/constraints.txt, into worker/venv or the
directory that GIRDER_WORKER_SLURM_VENV names. Can be run again to upgrade. Further arguments go to \`pip install\`.
Next: settings in worker/worker.local.cfg, then worker/run.sh. Exit code: 0 if all is installed.
EOF
}
case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${GIRDER_WORKER_SLURM_VENV:-$here/venv}

if [ ! -x "$venv/bin/python" ]; then
  echo "install.sh: there is no virtual environment in $venv; run $here/create.sh first." >&2
  exit 1
fi
echo "install.sh: installing into $venv; takes a minute or two"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$here/constraints.txt" "$@" "$here/..[girder]"
"$venv/bin/girder-slurm" --version
echo "install.sh: done; next: settings in $here/worker.local.cfg, then $here/run.sh"
