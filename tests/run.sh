#!/bin/bash
# Runs all tests: lint, types, unit, contract, integration and acceptance, on a plain Debian or Ubuntu machine.
# What is tested is the wheel that is built here, not the checkout. Installs what the tests need: the real services
# through devstack/devstack (as root or with sudo), and virtual environments below the stack's directory. Can be run
# again; the second run is quicker. With pytest arguments, the runs with other versions of the libraries are left out.
#
#   tests/run.sh [unit|all] [pytest arguments]     default: all
#
# Two stacks stand side by side, since most tests wait for Slurm and Girder more than they work.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
what=${1:-all}
case $what in
unit | all) [ $# = 0 ] || shift ;;
*) echo "usage: tests/run.sh [unit|all] [pytest arguments]" >&2; exit 2 ;;
esac
export DEVSTACK_DIR=${DEVSTACK_DIR:-/var/tmp/girder-slurm-devstack}
second=$DEVSTACK_DIR-second
# The acceptance tests of the second stack, after those of docker compose; all others are the first one's. Divided by time.
on_second=(restart girder_away soak site retries options tokens verdicts)
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }
root_command=()  # with what configures the stack, pip and proxies, as worker/demo.sh does
if [ "$(id -u)" != 0 ]; then
  root_command=(sudo "--preserve-env=$(compgen -e | grep -E '^DEVSTACK_|^PIP_|_(proxy|PROXY)$' | paste -sd,)")
fi
as_root() { "${root_command[@]}" "$@"; }
with_stack() {  # with_stack DIRECTORY COMMAND...
  # shellcheck disable=SC2016 # sudo keeps no environment: the stack's is read again on the other side.
  as_root bash -c 'set -a; . "$1/env"; set +a; shift; exec "$@"' - "$@"
}
declare -A behind=()  # what runs in the background: name -> pid, which leads a group of its own
finish() {
  code=$?
  for name in "${!behind[@]}"; do
    # As Ctrl-C does, so that tests end what they have started.
    as_root kill -INT -- "-${behind[$name]}" 2>/dev/null || true
    wait "${behind[$name]}" 2>/dev/null || true
  done
  [ "$code" = 0 ] || printf '\ntests: FAILED in %d s\n' $((SECONDS - started))
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT  # pytest ends well on Ctrl-C, after which bash would go on with the next tests
in_background() {  # in_background NAME COMMAND...
  local name=$1
  shift
  set -m
  "$@" >"$work/$name.log" 2>&1 </dev/null &
  set +m
  behind[$name]=$!
}
wait_for() {  # its output is shown only when it failed
  local pid=${behind[$1]} code=0
  wait "$pid" || code=$?
  unset "behind[$1]"
  [ "$code" = 0 ] || { tail -n 100 "$work/$1.log"; echo "tests: $1 failed, see above and $work/$1.log"; exit 1; }
  echo "$1: OK"
}

if [ "$what" = all ]; then
  demo_worker=$(cat "$DEVSTACK_DIR/demo/worker.pid" 2>/dev/null || true)
  if [ -n "$demo_worker" ] && [ -e "/proc/$demo_worker" ]; then
    say "stopping the demonstration, whose worker would take tasks of the tests from the same queue"
    as_root "$here/worker/demo.sh" --stop
  fi
  say "bringing the real services up"
  if ! command -v python3 >/dev/null || ! command -v git >/dev/null; then
    as_root sh -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq --yes install python3 git' >/dev/null
  fi
  as_root "$here/devstack/devstack" up
fi

command -v git >/dev/null || { echo "tests: git is not here, which lists the files of the checkout: install it"; exit 1; }

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
# uv reads no configuration of pip: an index of the site's is handed on, and its certificate authority to what runs uv.
index=${PIP_INDEX_URL:-$("$work/venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
[ -z "$index" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
authority=${PIP_CERT:-$("$work/venv/bin/python" -m pip config get global.cert 2>/dev/null || true)}
with_authority=()
if [ -z "${SSL_CERT_FILE:-}" ] && [ -f "$authority" ]; then
  with_authority=(env "SSL_CERT_FILE=$authority")
fi
export PATH=$work/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 UV_COMPILE_BYTECODE=1 UV_NO_PROGRESS=1
rm -rf "$work/checkout" "$work/tests-only" "$work/dist"
"${with_authority[@]}" uv build --quiet --out-dir "$work/dist" "$here"
wheel=$(echo "$work"/dist/*.whl)
mkdir -p "$work/checkout"
(cd "$here" && git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null) | tar -xf - -C "$work/checkout"
cd "$work/checkout"
"${with_authority[@]}" uv pip install --quiet --python "$work/venv/bin/python" --constraint worker/constraints.txt \
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

if [ "$what" = all ]; then
  second_stack() {
    # Slurm, RabbitMQ and other packages are there by now: this is quick.
    as_root env --unset=DEVSTACK_SERVICE_USER DEVSTACK_DIR="$second" DEVSTACK_USER="$1-second" "$here/devstack/devstack" up
    [ "$2" != images ] || (cd "$work/checkout" && with_stack "$second" env PATH="$PATH" python -m tests.compose.images)
  }
  # Its own accounts.
  user=$(as_root sed -n "s/^DEVSTACK_USER='\(.*\)'$/\1/p" "$DEVSTACK_DIR/env")
  in_background second_stack second_stack "$user" "$([ $# != 0 ] || echo images)"
fi
if [ "$what" = all ] && [ $# = 0 ]; then
  in_background versions "${with_authority[@]}" nox --envdir "$work/nox" --session 'dependencies' sbom
  in_background audit "${with_authority[@]}" nox --envdir "$work/nox-audit" --session audit -- --if-reachable
fi
if [ "$what" = all ]; then
  # As a user does who has the wheel and its pins: pip, and no checkout. The acceptance tests start it.
  export GIRDER_SLURM_CLEAN_VENV=$work/clean
  # shellcheck disable=SC2016 # for the shell that is started
  in_background installation bash -ec '"$1" -m venv --clear "$2"; "$2/bin/pip" install --quiet --disable-pip-version-check \
    --constraint worker/constraints.txt "${3}[girder]"' - "$python" "$GIRDER_SLURM_CLEAN_VENV" "$wheel"
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
  say "what is known against the pinned versions"
  wait_for audit
  grep '^audit: ' "$work/audit.log"
fi

# shellcheck disable=SC1090
set -a && . <(as_root cat "$DEVSTACK_DIR/env") && set +a
user_home=$(getent passwd "$DEVSTACK_USER" | cut -d: -f6)
none_is_fine=$#  # whether arguments choose among the tests
run_pytest() {  # run_pytest DIRECTORY REQUIRED-SERVICES COMMAND... with the arguments of pytest at its end
  local directory=$1 services=$2 code=0
  shift 2
  with_stack "$directory" env PATH="$PATH" PYTHONDONTWRITEBYTECODE=1 GIRDER_SLURM_REQUIRE="$services" \
    GIRDER_SLURM_FAULTS="${GIRDER_SLURM_FAULTS:-}" GIRDER_SLURM_CLEAN_VENV="$GIRDER_SLURM_CLEAN_VENV" \
    "$@" -p no:cacheprovider -p no:randomly || code=$?
  [ "$code" = 5 ] && [ "$none_is_fine" -gt 0 ] && code=0
  return "$code"
}
acceptance_of() { printf 'tests/acceptance/test_%s.py\n' "${on_second[@]}"; }
second_half() {
  trap 'exit 130' INT
  local code=0 files
  mapfile -t files < <(acceptance_of)
  # Docker builds the worker's image from the whole checkout.
  (cd "$work/checkout" && run_pytest "$second" docker "$work/venv/bin/pytest" --verbose tests/compose "$@") || code=$?
  (cd "$work/tests-only" && run_pytest "$second" girder "$work/venv/bin/pytest" --verbose "${files[@]}" "$@") || code=$?
  return "$code"
}

wait_for installation
chmod -R a+rX "$GIRDER_SLURM_CLEAN_VENV"
wait_for second_stack
in_background second_half second_half "$@"

# An account that was made anew may have another number than the one whose directory pytest would not take.
as_root find /tmp -maxdepth 1 -name "pytest-of-$DEVSTACK_USER" ! -user "$DEVSTACK_USER" -exec rm -rf {} +
failed=0
say "contract and integration tests, as the unprivileged user"
run_pytest "$DEVSTACK_DIR" slurm,apptainer,girder \
  setpriv --reuid="$DEVSTACK_USER" --regid="$DEVSTACK_USER" --init-groups --inh-caps=-all \
  env HOME="$user_home" USER="$DEVSTACK_USER" LOGNAME="$DEVSTACK_USER" \
  PATH="$DEVSTACK_PATH:$work/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
  pytest tests/contract tests/integration "$@" || failed=1

say "acceptance tests: the whole product on the real stack"
mapfile -t elsewhere < <(acceptance_of)
run_pytest "$DEVSTACK_DIR" girder "$work/venv/bin/pytest" --verbose tests/acceptance "${elsewhere[@]/#/--ignore=}" "$@" || failed=1

say "the server by docker compose, with a cluster too, on an engine of the tests' own, and the rest of the acceptance tests"
pid=${behind[second_half]}
wait "$pid" || failed=1
unset "behind[second_half]"
cat "$work/second_half.log"
[ "$failed" = 0 ] || exit 1

if [ -n "${GIRDER_SLURM_FAULTS:-}" ]; then
  say "the fault matrix"
  python -m tests.support.faults "$GIRDER_SLURM_FAULTS"
fi

cat <<EOF

Both stacks keep running, and their data stays. To remove them and their accounts:
  DEVSTACK_DIR=$DEVSTACK_DIR $here/devstack/devstack wipe
  DEVSTACK_DIR=$second $here/devstack/devstack wipe
EOF
printf '\ntests: OK in %d s\n' $((SECONDS - started))
