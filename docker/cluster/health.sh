#!/bin/bash
# Is this part of the cluster ready for jobs? Exit code 0 if so.
set -euo pipefail
case $1 in
  controller) scontrol ping ;;
  node)
    state=$(sinfo --noheader --nodes="$(hostname)" --format=%T)
    echo "$state"
    # With a mark such as `*` (does not answer) it is none of these.
    [[ $state =~ ^(idle|mixed|allocated|completing)$ ]]
    ;;
  worker) sinfo --noheader --format=%T >/dev/null && exec python3 -m girder_cluster health ;;
esac
