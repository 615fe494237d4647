#!/usr/bin/env bash
# Programs that `make image-test` (image) and `make k8s-test` (cluster) drive. As root on Debian they are installed;
# elsewhere the tests say what is missing.
set -euo pipefail

case "${1:?image or cluster}" in
  image)
    if docker info >/dev/null 2>&1; then exit 0; fi
    wanted=(buildah:buildah podman:podman runc:runc catatonit:catatonit debootstrap:debootstrap newuidmap:uidmap)
    ;;
  cluster) wanted=(promtool:prometheus prometheus:prometheus nginx:nginx-light) ;;
esac

missing=()
for pair in "${wanted[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ "${#missing[@]}" = 0 ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "k8s/tools.sh: missing: ${missing[*]}" >&2
  exit 0
fi
echo "k8s/tools.sh: installing ${missing[*]}"
apt-get update -qq
# Debian starts what it installs where it finds an init; these are wanted as programs only.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
