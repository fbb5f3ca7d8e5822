#!/bin/bash
# Runs all tests: lint, types, unit, contract, integration and acceptance, on a plain Debian or Ubuntu machine.
# What is tested is the wheel that is built here, not the checkout. Installs what the tests need: the real services
# through devstack/devstack (as root or with sudo), and virtual environments below the stack's directory. Can be run
# again; the second run is quicker. With pytest arguments, the runs with other versions of the libraries are left out.
#
#   tests/run.sh [unit|all] [pytest arguments]     default: all
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
what=${1:-all}
[ $# -gt 0 ] && shift
export DEVSTACK_DIR=${DEVSTACK_DIR:-/var/tmp/girder-slurm-devstack}
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }
root_command=()  # with what configures the stack, pip and proxies, as worker/demo.sh does
if [ "$(id -u)" != 0 ]; then
  root_command=(sudo "--preserve-env=$(compgen -e | grep -E '^DEVSTACK_|^PIP_|_(proxy|PROXY)$' | paste -sd,)")
fi
as_root() { "${root_command[@]}" "$@"; }
with_stack() {
  # shellcheck disable=SC2016 # sudo keeps no environment: the stack's is read again on the other side.
  as_root bash -c 'set -a; . "$1/env"; set +a; shift; exec "$@"' - "$DEVSTACK_DIR" "$@"
}
declare -A behind=()  # what runs in the background: name -> pid, which leads a group of its own
finish() {
  code=$?
  for pid in "${behind[@]}"; do
    as_root kill -TERM -- "-$pid" 2>/dev/null || true
  done
  [ "$code" = 0 ] || printf '\ntests: FAILED in %d s\n' $((SECONDS - started))
  exit "$code"
}
trap finish EXIT
in_background() {  # in_background NAME COMMAND...
  local name=$1
  shift
  setsid "$@" >"$work/$name.log" 2>&1 </dev/null &
  behind[$name]=$!
}
wait_for() {  # its output is shown only when it failed
  local pid=${behind[$1]}
  wait "$pid" || { tail -n 100 "$work/$1.log"; echo "tests: $1 failed, see above and $work/$1.log"; exit 1; }
  unset "behind[$1]"
  echo "$1: OK"
}

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
if [ ! -x "$work/venv/bin/uv" ]; then
  "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
fi
# uv reads no configuration of pip: an index of the site's is handed on.
index=${PIP_INDEX_URL:-$("$work/venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
[ -z "$index" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
export PATH=$work/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 UV_COMPILE_BYTECODE=1 UV_NO_PROGRESS=1
rm -rf "$work/checkout" "$work/tests-only" "$work/dist"
uv build --quiet --out-dir "$work/dist" "$here"
wheel=$(echo "$work"/dist/*.whl)
mkdir -p "$work/checkout"
(cd "$here" && git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null) | tar -xf - -C "$work/checkout"
cd "$work/checkout"
uv pip install --quiet --python "$work/venv/bin/python" --constraint worker/constraints.txt \
  --reinstall-package girder-worker-slurm "${wheel}[girder,test]"
# Without the packages, so that the tests find those of the wheel.
cp -a --link "$work/checkout" "$work/tests-only"
rm -r "$work"/tests-only/girder_worker_{slurm,singularity}
chmod -R a+rX "$work"
export GIRDER_SLURM_DIST=$work/dist
if [ "$what" = all ] && [ $# = 0 ]; then
  # How the tests of the fault matrix end, whoever runs them.
  export GIRDER_SLURM_FAULTS=$work/faults
  rm -rf "$GIRDER_SLURM_FAULTS"
  mkdir -m 1777 "$GIRDER_SLURM_FAULTS"
  chmod 1777 "$GIRDER_SLURM_FAULTS"
fi

if [ "$what" = all ] && [ $# = 0 ]; then
  in_background versions nox --envdir "$work/nox" --session 'dependencies' sbom
fi
if [ "$what" = all ]; then
  # As a user does who has the wheel and its pins: pip, and no checkout. The acceptance tests start it.
  export GIRDER_SLURM_CLEAN_VENV=$work/clean
  # shellcheck disable=SC2016 # for the shell that is started
  in_background installation bash -ec '"$1" -m venv --clear "$2"; "$2/bin/pip" install --quiet --disable-pip-version-check \
    --constraint worker/constraints.txt "${3}[girder]"' - "$python" "$GIRDER_SLURM_CLEAN_VENV" "$wheel"
fi

if [ "$what" = all ] && [ $# = 0 ]; then
  # The tests of docker compose come last; Debian's packages are fetched for their images meanwhile.
  # shellcheck disable=SC2016 # for the shell that is started
  in_background images "${root_command[@]}" bash -ec 'set -a; . "$1/env"; set +a; cd "$2"; export PATH=$3
    exec python -m tests.compose.images' - "$DEVSTACK_DIR" "$work/checkout" "$PATH"
fi

say "lint, types, import rules"
ruff check .
ruff format --check .
mypy
lint-imports
python docs/generate.py --check

cd "$work/tests-only"
say "unit tests, with the wheel"
pytest tests/unit tests/test_architecture.py tests/test_docs.py tests/packaging "$@"
if [ "$what" != all ]; then
  printf '\ntests: OK in %d s (unit only)\n' $((SECONDS - started))
  exit 0
fi
if [ -n "${behind[versions]:-}" ]; then
  say "unit tests with the lowest and the newest versions of the libraries, SBOM"
  wait_for versions
fi

# shellcheck disable=SC1090
set -a && . <(as_root cat "$DEVSTACK_DIR/env") && set +a
export GIRDER_SLURM_REQUIRE=slurm,apptainer,girder
user_home=$(getent passwd "$DEVSTACK_USER" | cut -d: -f6)
as_user() {
  with_stack setpriv --reuid="$DEVSTACK_USER" --regid="$DEVSTACK_USER" --init-groups --inh-caps=-all \
    env HOME="$user_home" USER="$DEVSTACK_USER" LOGNAME="$DEVSTACK_USER" \
    PATH="$DEVSTACK_PATH:$work/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
    GIRDER_SLURM_REQUIRE="$GIRDER_SLURM_REQUIRE" GIRDER_SLURM_FAULTS="${GIRDER_SLURM_FAULTS:-}" PYTHONDONTWRITEBYTECODE=1 "$@"
}

# An account that was made anew may have another number than the one whose directory pytest would not take.
as_root find /tmp -maxdepth 1 -name "pytest-of-$DEVSTACK_USER" ! -user "$DEVSTACK_USER" -exec rm -rf {} +
say "contract and integration tests, as the unprivileged user"
as_user pytest -p no:cacheprovider -p no:randomly tests/contract tests/integration "$@"

[ -z "${behind[images]:-}" ] || wait_for images
wait_for installation
chmod -R a+rX "$GIRDER_SLURM_CLEAN_VENV"
say "acceptance tests: the whole product on the real stack"
with_stack env PATH="$PATH" GIRDER_SLURM_REQUIRE=girder PYTHONDONTWRITEBYTECODE=1 GIRDER_SLURM_FAULTS="${GIRDER_SLURM_FAULTS:-}" \
  GIRDER_SLURM_CLEAN_VENV="$GIRDER_SLURM_CLEAN_VENV" \
  "$work/venv/bin/pytest" -p no:cacheprovider -p no:randomly --verbose tests/acceptance "$@"

say "the server by docker compose, and with a cluster, on an engine of the tests' own"
cd "$work/checkout"  # the whole of it, which Docker builds the worker's image from
with_stack env PATH="$PATH" GIRDER_SLURM_REQUIRE=docker PYTHONDONTWRITEBYTECODE=1 GIRDER_SLURM_FAULTS="${GIRDER_SLURM_FAULTS:-}" \
  "$work/venv/bin/pytest" -p no:cacheprovider -p no:randomly --verbose tests/compose "$@"

if [ -n "${GIRDER_SLURM_FAULTS:-}" ]; then
  say "the fault matrix"
  python -m tests.support.faults "$GIRDER_SLURM_FAULTS"
fi

printf '\ntests: OK in %d s\n' $((SECONDS - started))
