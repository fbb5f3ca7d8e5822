#!/bin/bash
# Writes .env for docker-compose.yaml: new passwords, ports, directories. Never overwrites one.
set -euo pipefail
umask 077
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
file=$checkout/.env

usage() {
  cat <<EOF
usage: docker/make-env.sh [OPTION...]        write .env beside docker-compose.yaml, with new passwords
       docker/make-env.sh --update           add what an older .env lacks; what is there stays
       docker/make-env.sh --worker FILE      write FILE for the worker beside Slurm: broker, password, Girder's address

  --bind ADDRESS     where Girder and RabbitMQ can be reached, an address of this machine (default 127.0.0.1)
  --user UID:GID     whom the services run as, and data belongs to (default: you)
  --sif DIRECTORY    mounted at /SIF in Girder's container (default: an empty volume)
  --image IMAGE      another image with Girder 5 in it, such as dsarchive/dsa_common_5, instead of building one
  --address HOST     with --worker: how the worker calls this machine (default: the address of --bind)

Exit codes: 0 done, 1 refused, 2 wrong usage.
EOF
}
fail() { echo "make-env: $*" >&2; exit 1; }
wrong() { echo "make-env: $*" >&2; usage >&2; exit 2; }

action=new bind=127.0.0.1 user='' sif='' image='' address='' worker=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --update) action=update; shift; continue ;;
  esac
  [ -n "${2:-}" ] || wrong "$1 is not known, or lacks its value"
  case $1 in
    --bind) bind=$2 ;;
    --user) user=$2 ;;
    --sif) sif=$2 ;;
    --image) image=$2 ;;
    --address) address=$2 ;;
    --worker) action=worker; worker=$2 ;;
    *) wrong "$1 is not known" ;;
  esac
  shift 2
done
[[ $bind =~ ^[0-9.]+$ || $bind =~ ^\[[0-9a-fA-F:]+\]$ ]] || wrong "--bind takes an address such as 127.0.0.1, not $bind"
[[ -z $user || $user =~ ^[0-9]+:[0-9]+$ ]] || wrong "--user takes UID:GID in numbers, not $user"
[[ -z $sif || $sif = /* ]] || wrong "--sif takes an absolute path, not $sif"
[[ $sif != *[\'$'\n']* ]] || wrong "--sif takes a path without quotes"
[[ $image =~ ^[A-Za-z0-9._/:@-]*$ ]] || wrong "--image takes an image's name, not $image"

value_of() { sed -n "s/^$1=//p" "$file" | tail -n 1 | sed "s/^'\(.*\)'\$/\1/; s/^\"\(.*\)\"\$/\1/"; }
# Letters and digits only: they mean nothing to a shell, an address or RabbitMQ's file. 190 bits.
password() { LC_ALL=C tr -dc 'A-Za-z0-9' < <(head -c 1024 /dev/urandom) | head -c 32; }

if [ "$action" = worker ]; then
  [ -f "$file" ] || fail "there is no $file: docker/make-env.sh writes it"
  [ ! -e "$worker" ] || fail "$worker is there already; nothing was changed. Name another file and take its lines over"
  bound=$(value_of RABBITMQ_BIND)
  case ${address:=${bound:-127.0.0.1}} in
    0.0.0.0 | '[::]') address=$(hostname -f 2>/dev/null || hostname) ;;
  esac
  login=$(value_of RABBITMQ_USER) secret=$(value_of RABBITMQ_PASSWORD)
  [[ -n $login && -n $secret ]] || fail "$file lacks RABBITMQ_USER or RABBITMQ_PASSWORD: docker/make-env.sh --update"
  port=$(value_of RABBITMQ_PORT) girder_port=$(value_of GIRDER_PORT)
  cat > "$worker" <<EOF
# How the worker finds the server of $checkout. Made by docker/make-env.sh.
[celery]
broker = amqp://$login:$secret@$address:${port:-5672}/
backend = rpc://$login:$secret@$address:${port:-5672}/

[girder]
api_url = http://$address:${girder_port:-8080}/api/v1
EOF
  echo "make-env: wrote $worker (mode 0600). Add [jobs] root and what your site needs; then worker/run.sh beside Slurm."
  exit 0
fi

if [ -z "$user" ]; then
  user=${SUDO_UID:-$(id -u)}:${SUDO_GID:-$(id -g)}
  if [ "$user" = 0:0 ]; then
    user=1000:1000
    echo "make-env: you are root: the services will run as $user (DSA_USER). --user names somebody else." >&2
  fi
fi

sif_line="#SIF_IMAGE_PATH=/shared/sif"
[ -z "$sif" ] || sif_line="SIF_IMAGE_PATH='$sif'"
template() {
  cat <<EOF
# For docker-compose.yaml, and for nobody else to read. Made by docker/make-env.sh; docs/howto/compose.md explains it.
# What is set in the shell wins over this file.

# Whom the services run as, and to whom the data belongs: UID:GID.
DSA_USER=$user

# Passwords. RabbitMQ, MongoDB and Girder take them on their first start. To change one later see docs/howto/compose.md.
RABBITMQ_USER=girder
RABBITMQ_PASSWORD=$(password)
MONGODB_PASSWORD=$(password)
GIRDER_ADMIN_LOGIN=admin
GIRDER_ADMIN_PASSWORD=$(password)

# Where the services can be reached: addresses of this machine, and ports. RabbitMQ needs the worker's side, MongoDB nobody's.
GIRDER_BIND=$bind
GIRDER_PORT=8080
RABBITMQ_BIND=$bind
RABBITMQ_PORT=5672
MONGODB_BIND=127.0.0.1
MONGODB_PORT=27017

# Directories instead of volumes, as absolute paths.
#MONGODB_DATA=/srv/girder/mongodb
#RABBITMQ_DATA=/srv/girder/rabbitmq
#ASSETSTORE_DATA=/srv/girder/assetstore
$sif_line
# Below this Girder counts as unhealthy.
MIN_FREE_MB=1000
${image:+
# Another image with Girder 5, pulled instead of built.
COMPOSE_FILE=docker-compose.yaml:docker/dsa.yaml
GIRDER_IMAGE=$image
}
EOF
}

if [ "$action" = update ]; then
  [ -f "$file" ] || fail "there is no $file yet: docker/make-env.sh without --update writes it"
  added=()
  while IFS= read -r line; do
    name=${line%%=*}
    if [[ $line =~ ^[A-Z_]+= ]] && [ -z "$(value_of "$name")" ]; then
      [ "${#added[@]}" -gt 0 ] || [ -z "$(tail -c 1 "$file")" ] || echo >> "$file"
      printf '%s\n' "$line" >> "$file"
      added+=("$name")
    fi
  done < <(template)
  chmod 600 "$file"
  echo "make-env: ${added[*]:-nothing} added to $file."
  exit 0
fi

set -o noclobber
if ! { template > "$file"; } 2>/dev/null; then
  [ -e "$file" ] || fail "$file cannot be written"
  fail "$file is there already and stays: its passwords are those of the data. --update adds what an older one lacks"
fi
[ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$file"
cat <<EOF
make-env: wrote $file (mode 0600). Next:

  docker/check.sh                                  is anything in the way?
  docker compose up -d --wait                      build and start
  docker/make-env.sh --worker worker.local.cfg     for the worker, which runs beside Slurm

Girder will be at http://$bind:8080; user and password of its administrator are in .env (GIRDER_ADMIN_...).
EOF
