#!/bin/sh
# What the container runs. Without BENTOML_SERVE_COMPONENT: gateway and runners together. With it (the names are those of
# BentoML's own image), one service per container:
#   BENTOML_SERVE_COMPONENT=http_server BENTOML_SERVE_SERVICE_NAME=VideoRunner
#   BENTOML_SERVE_COMPONENT=http_server BENTOML_SERVE_DEPENDS="FirstFrameRunner=http://a:3000 VideoRunner=http://b:3000"
# In the second way also set BENTOML_CONTAINERIZED=1: a dead worker then ends its container, and the orchestrator acts.
set -eu
if [ "${BENTOML_SERVE_COMPONENT:-}" = http_server ]; then
    exec python -m bentoml_cli._internal.start start-http-server "$@" .
fi
exec python -m bentoml serve "$@" .
