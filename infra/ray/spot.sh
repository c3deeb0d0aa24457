#!/bin/sh
# Waits for AWS's notice that this spot machine will be taken back, and marks its Ray node as draining: the driver sees
# that, and the workers here finish their window or leave it to others. Kubernetes needs none of this: there the notice
# ends in a SIGTERM to `ray start`, which does the same.
#
# DIFFSEG_METADATA: where the machine's metadata are, by default where AWS has them.
set -u

metadata="${DIFFSEG_METADATA:-http://169.254.169.254}/latest"
lifetime='X-aws-ec2-metadata-token-ttl-seconds: 60'
while :; do
  token=$(wget --quiet --timeout=5 --output-document=- --method=PUT --header="$lifetime" "$metadata/api/token")
  if wget --quiet --timeout=5 --output-document=/dev/null --header="X-aws-ec2-metadata-token: $token" \
    "$metadata/meta-data/spot/instance-action"; then
    exec ray drain-node --reason=DRAIN_NODE_REASON_PREEMPTION --reason-message='spot notice' \
      --deadline-remaining-seconds=110
  fi
  sleep "${DIFFSEG_SPOT_POLL_S:-5}"
done
