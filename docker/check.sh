#!/bin/bash
# What is in the way of `docker compose up -d --wait`, and what is wrong after it.
set -uo pipefail

usage() {
  cat <<EOF
usage: docker/check.sh [--help]

Says what is in the way of \`docker compose up -d --wait\`, and what is wrong after it: Docker, .env, ports, disk, and
each service that was started. Changes nothing. Exit codes: 0 all is well, 1 something is wrong, 2 wrong usage.
EOF
}
case ${1:-} in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
code=0
ok() { printf 'ok    %s\n' "$1"; }
warn() { printf 'warn  %s\n      -> %s\n' "$1" "$2"; }
bad() { printf 'FAIL  %s\n      -> %s\n' "$1" "$2"; code=1; }

# As docker compose does: the shell's variables, then .env.
value() {
  local found=${!1:-}
  [ -n "$found" ] || found=$(sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1 | sed "s/^'\(.*\)'\$/\1/; s/^\"\(.*\)\"\$/\1/")
  printf '%s' "${found:-${2:-}}"
}

engine() {
  local version
  if ! version=$(docker version --format '{{.Server.Version}}' 2>&1); then
    bad "Docker's engine does not answer: ${version##*$'\n'}" "Start it, or ask for access to it (group docker)."
    exit 1
  fi
  if ! version=$(docker compose version --short 2>/dev/null); then
    bad "There is no docker compose." "Install Compose v2, 2.23.1 or newer, as a plugin of Docker (docker-compose, the older program, will not do)."
    exit 1
  fi
  version=${version#v}
  if [ "$(printf '%s\n' 2.23.1 "${version%%[-+]*}" | sort -V | head -n 1)" != 2.23.1 ]; then
    bad "docker compose is $version." "Install 2.23.1 or newer."
    exit 1
  fi
  ok "Docker answers, compose is $version."
}

settings() {
  local said
  if [ ! -f .env ] && [ -z "${DSA_USER:-}" ]; then
    bad "There is no .env." "docker/make-env.sh writes it."
    exit 1
  fi
  if ! said=$(docker compose config --quiet 2>&1); then
    bad ".env or docker-compose.yaml: ${said##*$'\n'}" "docker/make-env.sh --update adds what an older .env lacks."
    exit 1
  fi
  if [ -f .env ] && [ "$(stat -c %a .env)" != 600 ]; then
    warn ".env holds passwords and can be read by others." "chmod 600 .env"
  fi
  case $(value MONGODB_BIND 127.0.0.1) in
    127.* | '[::1]') ;;
    *) warn "MongoDB can be reached from other machines." "Nothing needs that: set MONGODB_BIND=127.0.0.1 in .env." ;;
  esac
  ok ".env is complete."
  said=$(find docker "$(value WORKER_CONFIG worker.dist.cfg)" "$(value PROVISION_YAML docker/provision.yaml)" ! -perm -004 2>&1 | head -n 1)
  if [ -n "$said" ]; then
    bad "The containers read files of this checkout, and not all can be read by them: $said" "chmod -R a+rX docker worker.dist.cfg"
  fi
}

port() {  # service, its port inside, address, port
  if [ -n "$(docker compose port "$1" "$2" 2>/dev/null)" ]; then
    ok "Port $3:$4 is $1's."
    return
  fi
  local at=$3
  case $at in 0.0.0.0) at=127.0.0.1 ;; '[::]') at=::1 ;; *) at=${at#[}; at=${at%]} ;; esac
  if (exec 3<> "/dev/tcp/$at/$4") 2>/dev/null; then
    bad "Port $4 at $3 is taken by another program, $1 needs it." "Stop that program ($(who_listens "$4")), or choose another ${1^^}_PORT in .env."
  else
    ok "Port $3:$4 is free for $1."
  fi
}
who_listens() {
  local line
  line=$(ss --no-header --listening --numeric --tcp --processes "sport = :$1" 2>/dev/null | grep -o '"[^"]*",pid=[0-9]*' | head -n 1)
  printf '%s' "${line:-as root, \`ss -ltnp\` says which}"
}

space() {  # directory, what it is for, variable
  local directory=$1 free least
  least=$(value MIN_FREE_MB 1000)
  while [ ! -e "$directory" ] && [ "$directory" != / ]; do directory=$(dirname "$directory"); done
  free=$(df --output=avail -BM "$directory" 2>/dev/null | tail -n 1 | tr -dc 0-9)
  if [ -z "$free" ]; then
    warn "How much space $1 has cannot be seen from here ($2)." "Look at it where Docker runs: at least $least MB."
  elif [ "$free" -lt "$least" ]; then
    bad "Only $free MB are free in $1 ($2), less than MIN_FREE_MB ($least)." "Make room, or name another directory by $3 in .env."
  else
    ok "$free MB are free in $1 ($2)."
  fi
}

services() {
  local name state health exit_code id said started seen=0
  while IFS='|' read -r name state health exit_code id; do
    [ -n "$name" ] || continue
    seen=1
    if [ "$health" = unhealthy ]; then
      said=$(docker inspect --format '{{range .State.Health.Log}}{{println .Output}}{{end}}' "$id" | grep . | tail -n 1)
      bad "$name is unhealthy: ${said:-it says nothing}" "docker compose logs $name"
    elif [ "$state" = restarting ] || { [ "$state" = exited ] && [ "$exit_code" != 0 ]; }; then
      started=$(docker inspect --format '{{.State.StartedAt}}' "$id")
      bad "$name ended with $exit_code:" "$(docker logs --since "$started" --tail 12 "$id" 2>&1 | sed '2,$s/^/         /')"
    else
      ok "$name: $state${health:+, $health}."
    fi
  done < <(docker compose ps --all --format '{{.Service}}|{{.State}}|{{.Health}}|{{.ExitCode}}|{{.ID}}' 2>/dev/null)
  [ "$seen" = 1 ] || ok "Nothing has been started yet: docker compose up -d --wait"
}

engine
settings
port girder 8080 "$(value GIRDER_BIND 127.0.0.1)" "$(value GIRDER_PORT 8080)"
port rabbitmq 5672 "$(value RABBITMQ_BIND 127.0.0.1)" "$(value RABBITMQ_PORT 5672)"
port mongodb 27017 "$(value MONGODB_BIND 127.0.0.1)" "$(value MONGODB_PORT 27017)"
space "$(docker info --format '{{.DockerRootDir}}')" "images and volumes" "data-root of Docker or the variables ..._DATA"
for name in MONGODB_DATA RABBITMQ_DATA ASSETSTORE_DATA; do
  directory=$(value "$name")
  [ -z "$directory" ] || space "$directory" "$name" "$name"
done
services
exit "$code"
