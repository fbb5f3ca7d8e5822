#!/bin/bash
# Puts Girder's side onto a machine without Docker.
set -euo pipefail
umask 022

usage() {
  cat <<EOF
usage: sudo server/install.sh [--help]

Makes account, directories, a virtual environment with the versions of worker/constraints.txt, settings with a new
password, and systemd units. Starts nothing. Run it again to upgrade: it keeps settings and data.
docs/howto/server-without-docker.md has the steps before and after.

Other places than the usual ones, each as an environment variable, behind sudo:
  GIRDER_SERVER_PROGRAMS=/opt/girder-server   GIRDER_SERVER_CONFIG=/etc/girder-server   GIRDER_SERVER_DATA=/var/lib/girder
  GIRDER_SERVER_USER=girder   GIRDER_SERVER_UNITS=/etc/systemd/system   PYTHON=/usr/bin/python3

Exit codes: 0 done, 1 something went wrong, 2 wrong usage.
EOF
}
case ${1:-} in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=${GIRDER_SERVER_PROGRAMS:-/opt/girder-server}
config=${GIRDER_SERVER_CONFIG:-/etc/girder-server}
data=${GIRDER_SERVER_DATA:-/var/lib/girder}
user=${GIRDER_SERVER_USER:-girder}
units=${GIRDER_SERVER_UNITS:-/etc/systemd/system}
python=${PYTHON:-/usr/bin/python3}
version=5.0.21

fail() { echo "install.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "this makes an account and system services: run it as root"
for place in "$programs" "$config" "$data" "$units"; do
  case $place in
    /*[[:space:]%\"\\\&\|]*) fail "$place: white space and the characters % \" \\ & | cannot be in the name of a directory of a service" ;;
    /*) ;;
    *) fail "$place: the name has to begin with /" ;;
  esac
done
[ -d "$units" ] || fail "there is no directory $units: is this a machine with systemd?"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$python is older than Python 3.10; name a newer one: PYTHON=/path/to/python3"
"$python" -c 'import ensurepip' 2>/dev/null || fail "$python has no ensurepip; install it (Debian, Ubuntu: python3-venv)"

if ! id "$user" >/dev/null 2>&1; then
  useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin "$user"
  echo "install.sh: made the account $user"
fi
group=$(id -gn "$user")
install -d -m 755 "$programs"
install -d -m 700 "$config"
install -d -m 750 -o "$user" -g "$group" "$data" "$data/assetstore"

[ -x "$programs/venv/bin/python" ] || "$python" -m venv "$programs/venv"
"$programs/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$here/../worker/constraints.txt" \
  "girder==$version" "girder-jobs==$version" "girder-worker==$version" "girder-plugin-worker==$version" \
  "girder-slicer-cli-web==$version" 'async-timeout; python_full_version < "3.11.3"'

if [ ! -e "$config/girder.env" ]; then
  password=$("$python" -c 'import secrets; print(secrets.token_hex(24))')
  (umask 077; sed "s/@PASSWORD@/$password/g" "$here/systemd/girder.env" > "$config/girder.env.new")
  mv "$config/girder.env.new" "$config/girder.env"
  echo "install.sh: wrote $config/girder.env with a new password for RabbitMQ"
fi
for unit in girder.service girder-local-worker.service; do
  sed -e "s|/opt/girder-server|$programs|g; s|/etc/girder-server|$config|g; s|/var/lib/girder|$data|g" \
    -e "s|^User=.*|User=$user|; s|^Group=.*|Group=$group|" "$here/systemd/$unit" > "$units/$unit.new"
  mv "$units/$unit.new" "$units/$unit"
done
echo "install.sh: Girder $version is in $programs, its settings are in $config/girder.env, its data goes to $data"
echo "install.sh: next: systemctl daemon-reload, then as docs/howto/server-without-docker.md says"
