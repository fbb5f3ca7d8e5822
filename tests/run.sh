#!/bin/bash
# Runs all tests: lint, types, unit, contract, integration and acceptance, on a plain Debian or Ubuntu machine.
# Installs what they need: the real services through devstack/devstack (as root or with sudo), and a virtual
# environment below the stack's directory. Can be run again; the second run is quicker.
#
#   tests/run.sh [unit|all] [pytest arguments]     default: all
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
what=${1:-all}
[ $# -gt 0 ] && shift
export DEVSTACK_DIR=${DEVSTACK_DIR:-/var/tmp/girder-slurm-devstack}
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }
as_root() {  # with what configures the stack, pip and proxies, as worker/demo.sh does
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo --preserve-env="$(compgen -e | grep -E '^DEVSTACK_|^PIP_|_(proxy|PROXY)$' | paste -sd,)" "$@"
  fi
}
finish() { code=$?; [ "$code" = 0 ] || printf '\ntests: FAILED in %d s\n' $((SECONDS - started)); exit "$code"; }
trap finish EXIT

if [ "$what" = all ]; then
  demo_worker=$(cat "$DEVSTACK_DIR/demo/worker.pid" 2>/dev/null || true)
  if [ -n "$demo_worker" ] && [ -e "/proc/$demo_worker" ]; then
    say "stopping the demonstration, whose worker would take tasks of the tests from the same queue"
    as_root "$here/worker/demo.sh" --stop
  fi
  say "bringing the real services up"
  if ! command -v python3 >/dev/null; then
    as_root sh -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq --yes install python3' >/dev/null
  fi
  as_root "$here/devstack/devstack" up
fi

# The checkout may be unreadable for the stack's unprivileged user: it gets a copy that it can read.
work=$DEVSTACK_DIR/tests
if [ "$what" = all ]; then
  as_root mkdir -p "$work"
  as_root chown "$(id -u):$(id -g)" "$work"
  chmod 755 "$work"
else
  work=${GIRDER_SLURM_TEST_DIR:-$here/.nox/tests}
  mkdir -p "$work"
fi
say "preparing the test environment in $work"
python=${PYTHON:-/usr/bin/python3}
if [ ! -x "$work/venv/bin/python" ]; then
  "$python" -m venv "$work/venv"
fi
rm -rf "$work/checkout"
mkdir -p "$work/checkout"
(cd "$here" && git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null) | tar -xf - -C "$work/checkout"
cd "$work/checkout"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint worker/constraints.txt \
  --editable '.[girder,test]'
chmod -R a+rX "$work"
export PATH=$work/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1

say "lint, types, import rules"
ruff check .
ruff format --check .
mypy
lint-imports
python docs/generate.py --check

say "unit tests"
pytest tests/unit tests/test_architecture.py tests/test_docs.py "$@"
if [ "$what" != all ]; then
  printf '\ntests: OK in %d s (unit only)\n' $((SECONDS - started))
  exit 0
fi

# shellcheck disable=SC1090
set -a && . <(as_root cat "$DEVSTACK_DIR/env") && set +a
export GIRDER_SLURM_REQUIRE=slurm,apptainer,girder
user_home=$(getent passwd "$DEVSTACK_USER" | cut -d: -f6)
with_stack() {
  # shellcheck disable=SC2016 # sudo keeps no environment: the stack's is read again on the other side.
  as_root bash -c 'set -a; . "$1/env"; set +a; shift; exec "$@"' - "$DEVSTACK_DIR" "$@"
}
as_user() {
  with_stack setpriv --reuid="$DEVSTACK_USER" --regid="$DEVSTACK_USER" --init-groups --inh-caps=-all \
    env HOME="$user_home" USER="$DEVSTACK_USER" LOGNAME="$DEVSTACK_USER" \
    PATH="$DEVSTACK_PATH:$work/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
    GIRDER_SLURM_REQUIRE="$GIRDER_SLURM_REQUIRE" PYTHONDONTWRITEBYTECODE=1 "$@"
}

say "contract and integration tests, as the unprivileged user"
as_user pytest -p no:cacheprovider -p no:randomly tests/contract tests/integration "$@"

say "acceptance tests: the whole product on the real stack"
with_stack env PATH="$PATH" GIRDER_SLURM_REQUIRE=girder PYTHONDONTWRITEBYTECODE=1 \
  "$work/venv/bin/pytest" -p no:cacheprovider -p no:randomly --verbose tests/acceptance "$@"

printf '\ntests: OK in %d s\n' $((SECONDS - started))
