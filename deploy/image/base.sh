#!/bin/sh
# deploy/image/base.sh NAME: a base image from Debian's packages alone, where no registry can be reached.
# Needs root, debootstrap and buildah. Then: deploy/image/build.sh cpu NAME
set -eu
name="${1:?usage: deploy/image/base.sh NAME, such as localhost/python:3.11}"
root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root/base" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
rm -rf "$root"/base/var/cache/apt/archives/*.deb "$root"/base/var/lib/apt/lists/*
ln -s python3 "$root/base/usr/bin/python"
container="$(buildah from scratch)"
buildah copy --quiet "$container" "$root/base" /
# as in the images of Python: programs are found, and pip may install beside Debian's packages
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin \
    --env PIP_BREAK_SYSTEM_PACKAGES=1 "$container"
buildah commit --quiet --rm "$container" "$name"
