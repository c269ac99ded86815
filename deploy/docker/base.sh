#!/bin/sh
# Make dist/rootfs.tar: a Debian with all that the image needs of the distribution, for hosts that reach a mirror of
# Debian but no registry of images. Needs mmdebstrap, and root or user namespaces.
#
#   deploy/docker/base.sh && docker import dist/rootfs.tar scistream-base
#   docker build --network none --build-arg BASE=scistream-base -f deploy/docker/Dockerfile -t scistream .
set -eu
cd "$(dirname "$0")/../.."
if ! command -v mmdebstrap >/dev/null; then
  echo "there is no mmdebstrap; install it: apt-get install mmdebstrap" >&2
  exit 1
fi
mkdir -p dist
rm -f dist/rootfs.tar.new
mmdebstrap --quiet --variant=minbase \
  --include=python3,python3-venv,haproxy,nginx-light,libnginx-mod-stream,stunnel4 \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --format=tar bookworm dist/rootfs.tar.new
mv dist/rootfs.tar.new dist/rootfs.tar
