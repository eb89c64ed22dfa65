#!/bin/sh
# deploy/image/bento.sh TAG [BASE] [buildah's options]: the image of a bento, by the Dockerfile in it, which is what
# `bentoml containerize TAG` builds. Needs buildah, and bentoml on the path.
set -eu
tag="${1:?usage: deploy/image/bento.sh gateway:VERSION [BASE] [options]}"
base="${2:-python:3.11.14-slim-bookworm}"
shift "$(($# < 2 ? $# : 2))"
folder="$(bentoml get "$tag" --output path)"
exec buildah build --layers --from "$base" --file "$folder/env/docker/Dockerfile" --tag "localhost/$tag" "$@" "$folder"
