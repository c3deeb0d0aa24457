#!/bin/sh
# Docker's health check. A Ray node answers for itself where its agent listens; a container without one is well when
# the command starts. Kubernetes asks by its own probes and ignores this.
set -eu

agent="http://127.0.0.1:${DIFFSEG_RAY_AGENT_PORT:-52365}/api/local_raylet_healthz"
if said=$(wget --quiet --tries=1 --timeout=5 --output-document=- "$agent"); then
  test "$said" = success
else
  case $? in
    4) diffseg --help >/dev/null ;; # nobody listens: no Ray node
    *) exit 1 ;;
  esac
fi
