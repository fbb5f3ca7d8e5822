#!/bin/bash
# Starts one part of the cluster in its container, as DSA_USER: controller, node or worker. Before them, as root,
# `prepare UID:GID` gives that user the shared directory.
set -euo pipefail
umask 022
shared=/shared
fail() { echo "$1" >&2; exit 1; }

if [ "$1" = prepare ]; then
  # The top last: should this be interrupted, the next start does it again.
  [ "$(stat -c %u:%g "$shared")" = "$2" ] || find "$shared" -depth -exec chown --no-dereference "$2" {} +
  exit 0
fi
[ -w "$shared" ] || fail "$shared does not belong to $(id -u):$(id -g) (DSA_USER in .env): remove its volume, or give it to that user."
id -un >/dev/null 2>&1 || fail "DSA_USER is $(id -u), which is no user here: docker-compose.yaml has to run as UID:GID."

# Celery takes a group without a name for root's, and Apptainer would warn in the log of every job.
getent group "$(id -g)" >/dev/null || echo "girder:x:$(id -g):" >> /etc/group

mkdir -p /run/slurm/spool
# What all share is made by whoever comes first.
(umask 077 && mkdir -p "$shared/munge" "$shared/slurm" "$shared/jobs" "$shared/home")
mkdir -p "$shared/sif" "$shared/archives"
if [ ! -e "$shared/munge/key" ]; then
  mine=$shared/munge/key.$(hostname)
  (umask 077 && head -c 128 /dev/urandom > "$mine")
  ln "$mine" "$shared/munge/key" 2>/dev/null || [ -e "$shared/munge/key" ]
  rm "$mine"
fi
# --force: a container that was killed leaves its socket.
munged --force --socket=/run/munge/munge.socket.2 --key-file="$shared/munge/key" --pid-file=/run/munge/pid \
  --seed-file=/run/munge/seed --log-file=/run/munge/log

mkdir -p "${SLURM_CONF%/*}"
{
  cat /etc/slurm/slurm.conf
  echo "NodeName=c1,c2 CPUs=${CLUSTER_NODE_CPUS:-2} RealMemory=${CLUSTER_NODE_MEMORY_MB:-2000} State=UNKNOWN"
  echo "PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
} > "$SLURM_CONF"
cp /etc/slurm/cgroup.conf "${SLURM_CONF%/*}"

case $1 in
  controller) exec slurmctld -D ;;
  node) exec slurmd -D -N "$(hostname)" ;;
  worker) exec python3 -m girder_cluster worker ;;
  *) fail "start.sh takes controller, node or worker, not $1" ;;
esac
