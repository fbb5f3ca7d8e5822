#!/bin/bash
# Creates the worker's virtual environment.
set -euo pipefail

usage() {
  cat <<EOF
usage: worker/create.sh [--help]

Makes the worker's virtual environment: worker/venv, or the directory that GIRDER_WORKER_SLURM_VENV names, which is
emptied first. PYTHON names another Python than python3; it has to be 3.10 or newer, with ensurepip.
Next: worker/install.sh. Exit codes: 0 done, 1 something went wrong, 2 wrong usage.
EOF
}
case ${1:-} in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${GIRDER_WORKER_SLURM_VENV:-$here/venv}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "create.sh: $python is older than Python 3.10; name a newer one: PYTHON=/path/to/python3 $0" >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
  echo "create.sh: $python has no ensurepip; install it (Debian, Ubuntu: python3-venv)." >&2
  exit 1
fi
"$python" -m venv --clear "$venv"
echo "create.sh: virtual environment made in $venv; next: $here/install.sh"
