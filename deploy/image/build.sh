#!/bin/sh
# deploy/image/build.sh TARGET [BASE] [buildah's options]: the image huvidpo:TARGET (cpu, cuda or train) by buildah.
# What `docker build --target TARGET -t huvidpo:TARGET .` does, without a daemon.
set -eu
target="${1:?usage: deploy/image/build.sh cpu|cuda|train [BASE] [options]}"
base="${2:-python:3.11.14-slim-bookworm}"
shift "$(($# < 2 ? $# : 2))"
cd "$(dirname "$0")/../.."
exec buildah build --layers --target "$target" --build-arg "BASE=$base" --tag "localhost/huvidpo:$target" "$@" .
