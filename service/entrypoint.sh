#!/bin/sh
# What the container runs. Without BENTOML_SERVE_COMPONENT: gateway and runners together. With it, one service; the names
# are those of BentoML's own image, so that the same manifest runs either:
#   BENTOML_SERVE_COMPONENT=http_server BENTOML_SERVE_SERVICE_NAME=VideoRunner
#   BENTOML_SERVE_COMPONENT=http_server BENTOML_SERVE_DEPENDS="FirstFrameRunner=http://a:3000 VideoRunner=http://b:3000"
# BENTOML_CONTAINERIZED, which the images set, makes a dead worker end its container, and the orchestrator acts. Started
# so, BentoML takes its address from the command line alone.
set -eu
if [ "${BENTOML_SERVE_COMPONENT:-}" = http_server ]; then
    exec python -m bentoml_cli._internal.start start-http-server --host "${BENTOML_HOST:-0.0.0.0}" "$@" .
fi
exec python -m bentoml serve "$@" .
