#!/bin/bash
# From nothing to a finished analysis on one machine: brings the real stack up (devstack/), installs and starts the
# worker, builds an analysis image, ingests it into Girder, runs it on a picture of stained tissue as a Slurm job.
# Needs Debian 12/13 or Ubuntu 22.04/24.04, root or sudo, and the machine's own apt and pip configuration.
# Can be run again: it reuses what is there. Stack and worker keep running until `worker/demo.sh --stop`.
set -Eeuo pipefail
umask 022
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$here")
# Nobody else's Python settings, and no byte code of root's in the checkout.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_USER
export PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8

usage() {
  cat <<EOF
usage: worker/demo.sh            run the demonstration
       worker/demo.sh --stop     stop the worker and the stack; all data stays
       worker/demo.sh --help     this text

DEVSTACK_DIR names the directory of everything (default: /var/tmp/girder-slurm-devstack); remove it, and the two
accounts, with \`devstack/devstack wipe\`. Exit codes: 0 done, 1 something went wrong, 2 wrong usage.
EOF
}

reason="interrupted"
finish() {
  local code=$?
  trap - EXIT ERR
  if [ "$code" -ne 0 ]; then
    echo "demo: FAILED – $reason"
  fi
  exit "$code"
}
fail() {
  reason=$*
  exit 1
}
step() { printf '\n== %s  (%d s)\n' "$*" "$SECONDS"; }

case ${1:-} in
  "" | --stop) ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "demo: FAILED – this needs root, and there is no sudo: run it as root"
    exit 1
  fi
  kept=()
  while IFS= read -r name; do
    kept+=("$name=${!name}")
  done < <(compgen -e | grep -E '^DEVSTACK_|^PIP_|_(proxy|PROXY)$' || true)
  exec sudo env "${kept[@]}" "$BASH" "$here/demo.sh" "$@"
fi

trap finish EXIT
trap 'reason="line $LINENO of worker/demo.sh failed: $BASH_COMMAND"' ERR
trap 'reason=interrupted; exit 130' INT TERM

export DEVSTACK_DIR=${DEVSTACK_DIR:-/var/tmp/girder-slurm-devstack}
demo=$DEVSTACK_DIR/demo
site=$demo/worker            # what the worker's account can read: the checkout may not be
export GIRDER_WORKER_SLURM_VENV=$site/venv
log=$demo/worker.log

worker_pid() {  # prints the pid of the demonstration's worker, if it runs
  local pid
  pid=$(cat "$demo/worker.pid" 2>/dev/null) || return 1
  [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$site" ] || return 1
  echo "$pid"
}

stop_worker() {
  local pid waited=0
  pid=$(worker_pid) || return 0
  kill -TERM "$pid"
  while [ -e "/proc/$pid" ]; do
    [ "$waited" -lt 300 ] || fail "the worker (pid $pid) does not end: see $log"
    sleep 0.1
    waited=$((waited + 1))
  done
  rm -f "$demo/worker.pid"
}

become_user=()  # in front of a command: runs it as the worker's account, with a login's environment
set_become_user() {
  become_user=(
    setpriv --reuid="$DEVSTACK_USER" --regid="$(id -g "$DEVSTACK_USER")" --init-groups
    env -i HOME="$(getent passwd "$DEVSTACK_USER" | cut -d: -f6)" USER="$DEVSTACK_USER" LOGNAME="$DEVSTACK_USER"
    LANG=C.UTF-8 PATH="$DEVSTACK_PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" SLURM_CONF="$SLURM_CONF"
  )
}

checksum() {  # of all files named, and of all below the directories named, in the checkout
  (cd "$checkout" && find "$@" -name __pycache__ -prune -o -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum
}

quietly() {  # quietly LOG COMMAND...: its last lines are shown only when it fails
  local file=$1
  shift
  "$@" >"$file" 2>&1 || { tail -n 15 "$file" >&2; return 1; }
}

need_containers() {  # ends the demonstration where the worker's account can start none: nothing of the rest would work
  local note
  note=$("$checkout/devstack/devstack" status | sed -n 's/^note: apptainer: //p') || true
  [[ $note != *"user namespaces"* ]] || fail "no container can be started on this machine: $note"
}

install_worker() {
  local wanted
  wanted=$(checksum girder_worker_slurm girder_worker_singularity pyproject.toml worker/constraints.txt worker/install.sh)
  if [ "$(cat "$site/installed" 2>/dev/null)" = "$wanted" ] && [ -x "$site/venv/bin/girder-slurm" ]; then
    echo "the worker is installed in $site/venv"
    return
  fi
  stop_worker
  rm -f "$site/installed"
  echo "installing the worker in $site/venv (takes a minute or two)"
  if ! { "$site/venv/bin/python" -m pip --version && "$site/venv/bin/python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; } \
    >/dev/null 2>&1; then
    quietly "$demo/install.log" env PYTHON=/usr/bin/python3 "$here/create.sh" || fail "worker/create.sh failed: see above"
  fi
  quietly "$demo/install.log" "$here/install.sh" ||
    fail "worker/install.sh failed: check the network and pip's configuration, then run this again"
  echo "$wanted" > "$site/installed"
  "$site/venv/bin/girder-slurm" --version
}

write_settings() {
  cat > "$site/worker.local.cfg.new" <<EOF
# Written by worker/demo.sh. It holds the broker's password.
[celery]
broker = $GIRDER_WORKER_BROKER
backend = $GIRDER_WORKER_BACKEND

[jobs]
root = $DEVSTACK_SHARED/demo
worker_id = demo

[slurm.options]
mem = 1G
time = 30

[singularity]
apptainer = $(PATH="$DEVSTACK_PATH:$PATH" command -v apptainer)
plain_http_registries = $DEVSTACK_REGISTRY
EOF
  chmod 600 "$site/worker.local.cfg.new"
  chown "$DEVSTACK_USER:" "$site/worker.local.cfg.new"
  install -d -m 700 -o "$DEVSTACK_USER" -g "$(id -g "$DEVSTACK_USER")" "$DEVSTACK_SHARED/demo"
  if ! cmp -s "$site/worker.local.cfg" "$site/worker.local.cfg.new" || ! cmp -s "$here/run.sh" "$site/run.sh" ||
    ! cmp -s "$checkout/worker.dist.cfg" "$demo/worker.dist.cfg"; then
    stop_worker
  fi
  mv "$site/worker.local.cfg.new" "$site/worker.local.cfg"
  install -m 755 "$here/run.sh" "$site/run.sh"
  install -m 644 "$checkout/worker.dist.cfg" "$demo/worker.dist.cfg"
}

write_command() {  # girder-slurm as the worker's account, for whoever tries the demonstration
  {
    echo '#!/bin/bash'
    echo "# Written by worker/demo.sh: girder-slurm for the demonstration's worker."
    # shellcheck disable=SC2016 # for the shell that runs it
    echo 'become=(); [ "$(id -u)" = 0 ] || become=(sudo --)'
    echo 'cd /  # the account may not be able to enter the directory of whoever calls this'
    # shellcheck disable=SC2016
    printf 'exec "${become[@]}"'
    printf ' %q' "${become_user[@]}" \
      GIRDER_WORKER_SLURM_CONFIG="$demo/worker.dist.cfg:$site/worker.local.cfg" "$site/venv/bin/girder-slurm"
    printf ' "$@"\n'
  } > "$demo/girder-slurm"
  chmod 755 "$demo/girder-slurm"
}

start_worker() {
  local pid waited=0
  if pid=$(worker_pid); then
    echo "the worker runs already, pid $pid"
    return
  fi
  if [ -e "$log" ]; then
    mv "$log" "$log.1"
  fi
  install -m 640 -o "$DEVSTACK_USER" -g "$(id -g "$DEVSTACK_USER")" /dev/null "$log"
  # Every program on this line replaces the one before it, so the pid is the worker's own.
  (cd "$site" && exec "${become_user[@]}" setsid "$site/run.sh") </dev/null >>"$log" 2>&1 9>&- &
  pid=$!
  echo "$pid" > "$demo/worker.pid"
  while ! grep -q ' ready\.$' "$log"; do
    kill -0 "$pid" 2>/dev/null || { tail -n 15 "$log"; fail "the worker ended at its start: see $log"; }
    [ "$waited" -lt 900 ] || { tail -n 15 "$log"; fail "the worker is not ready after 90 s: see $log"; }
    sleep 0.1
    waited=$((waited + 1))
  done
  disown "$pid"
  echo "the worker is ready, pid $pid, user $DEVSTACK_USER, log $log"
}

fetch_picture() {
  local scratch
  [ ! -e "$demo/ihc.png" ] || return 0
  rm -rf "$demo"/picture.??????
  scratch=$(mktemp -d "$demo/picture.XXXXXX")
  echo "taking ihc.png (colonic glands, H-DAB) out of scikit-image's wheel"
  quietly "$demo/picture.log" "$site/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$scratch" 'scikit-image>=0.22,<1' || fail "pip cannot bring scikit-image, which carries the picture: check pip's configuration"
  "$site/venv/bin/python" "$here/demo/picture.py" "$scratch"/*.whl "$demo/ihc.png" || fail "no picture: see the line above"
  rm -rf "$scratch"
}

slurm_line() {
  local line
  if [ -z "$1" ]; then
    echo "(its number is not in the job's log)"
  elif line=$("${become_user[@]}" squeue --noheader --states=all --jobs="$1" \
      --format='%i  name %j  user %u  partition %P  %T  ran %M  cpus %C  memory %m  on %N' 2>/dev/null) && [ -n "$line" ]; then
    echo "$line" | tr -s ' '
  else
    grep -E "^JobId=$1 " "$DEVSTACK_DIR/slurm/jobs.log" || echo "$1 (Slurm has forgotten it)"
  fi
}

if [ "${1:-}" = --stop ]; then
  stop_worker
  "$checkout/devstack/devstack" down || fail "devstack/devstack down failed: the lines above say why"
  echo "demo: OK – worker and stack are stopped; worker/demo.sh starts them again"
  exit 0
fi

step "The stack: Slurm, Apptainer, RabbitMQ, Girder, a registry"
if ! command -v python3 >/dev/null; then
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq --yes install python3; } >/dev/null ||
    fail "there is no python3, and apt-get cannot install it: check the machine's package sources"
fi
"$checkout/devstack/devstack" up || fail "the stack does not come up: the line above says why; logs are in $DEVSTACK_DIR/log"
set -a
# shellcheck source=/dev/null
. "$DEVSTACK_DIR/env"
set +a
set_become_user
need_containers
mkdir -p "$site" "$demo/results"
exec 9>"$demo/lock"
flock --nonblock 9 || fail "another worker/demo.sh is at work in $DEVSTACK_DIR: wait for it"

step "The worker"
install_worker
write_settings
write_command
start_worker

step "The analysis image and the picture"
image=$("$here/demo/build_image.sh" "$demo/image" "$DEVSTACK_REGISTRY") || fail "the image could not be built: the lines above say why"
echo "image      $image"
fetch_picture

step "The analysis, through Girder"
rm -f "$demo/facts" "$demo/problem"
pid=$(worker_pid) || fail "the worker has ended: see $log"
"$site/venv/bin/python" "$here/demo/run_analysis.py" --image "$image" --picture "$demo/ihc.png" \
  --results "$demo/results" --facts "$demo/facts" --worker-pid "$pid" 2>"$demo/problem" ||
  fail "$(tail -n 1 "$demo/problem") (worker's log: $log)"
demo_job='' demo_slurm_job='' demo_folder='' demo_results='' demo_fraction='' demo_steps=''
# shellcheck source=/dev/null
. "$demo/facts"

step "Where to look"
prefix=
[ "$DEVSTACK_DIR" = /var/tmp/girder-slurm-devstack ] || prefix="DEVSTACK_DIR=$DEVSTACK_DIR "
port=${GIRDER_URL##*:}
cat <<EOF
Slurm job  $(slurm_line "$demo_slurm_job")
Girder     $GIRDER_URL
           login $GIRDER_ADMIN_LOGIN, password $GIRDER_ADMIN_PASSWORD (also in $DEVSTACK_DIR/env)
job        $GIRDER_URL/#job/$demo_job
results    $GIRDER_URL/#folder/$demo_folder
           and in $demo_results
browser    if it runs on another machine: ssh -L $port:127.0.0.1:$port $HOSTNAME there, then the same addresses
worker     pid $pid (also in $demo/worker.pid), user $DEVSTACK_USER, log $log; root or sudo to read or kill
           its jobs: $demo/girder-slurm jobs --all (also: show, log, cancel, doctor)
           Slurm's: SLURM_CONF=$SLURM_CONF squeue
Stack and worker keep running. Stop both: $prefix$here/demo.sh --stop   (or $prefix$checkout/devstack/devstack down)

demo: OK – $demo_fraction of the tissue is stained; $demo_steps and back in Girder in $SECONDS s
EOF
