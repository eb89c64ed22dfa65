# docker build --target cpu -t huvidpo:cpu .      OpenVINO on any x86 machine
# docker build --target cuda -t huvidpo:cuda .    CUDA with TensorRT, for `docker run --gpus all`
# docker build --target train -t huvidpo:train .  training, the gate and the export, for jobs
# docker run --read-only --tmpfs /tmp -v huvidpo:/data -p 3000:3000 -p 3001:3001 huvidpo:cpu
#
# One image is the gateway, a runner, or all of them at once, by its environment: service/entrypoint.sh.
# BASE: any image with Python 3.11 and its venv module. PIP_ARGS: where packages come from, if not from PyPI.
# PIP_ARGS has no effect on what is installed: versions are those of requirements/*.txt.
ARG BASE=python:3.11.14-slim-bookworm

# checkov:skip=CKV_DOCKER_7: BASE is pinned above; what it is given as is its giver's
FROM ${BASE} AS packages
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements /requirements
RUN python3 -m venv /opt/venv

FROM packages AS cpu-packages
ARG CPU_TORCH="--extra-index-url https://download.pytorch.org/whl/cpu"
# hadolint ignore=SC2086
RUN /opt/venv/bin/pip install --quiet $PIP_ARGS $CPU_TORCH -r /requirements/serve.txt

FROM packages AS cuda-packages
# TensorRT in its RTX flavour (GeForce, RTX, L4, A10); for A100 and H100: TENSORRT=tensorrt-cu13==10.16.1.11
ARG TENSORRT="tensorrt-rtx-cu13==1.7.1.116"
# hadolint ignore=SC2086
RUN /opt/venv/bin/pip install --quiet $PIP_ARGS -r /requirements/serve.txt $TENSORRT

FROM packages AS train-packages
# hadolint ignore=SC2086
RUN /opt/venv/bin/pip install --quiet $PIP_ARGS -r /requirements/train.txt

FROM ${BASE} AS service
RUN /usr/sbin/useradd --uid 10001 --home-dir /tmp --shell /usr/sbin/nologin huvidpo \
    && install --directory --owner=huvidpo /data
WORKDIR /app
COPY bentofile.yaml README.md LICENSE ./
COPY huvidpo huvidpo
COPY preferences preferences
COPY service service
COPY models models
# What is written goes to /tmp and /data: the rest can be read-only.
ARG COMMIT=""
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BENTOML_DO_NOT_TRACK=True \
    BENTOML_CONTAINERIZED=true \
    BENTOML_HOME=/tmp/bentoml \
    BENTOML_HOST=0.0.0.0 \
    BENTOML_PORT=3000 \
    HF_HUB_OFFLINE=1 \
    HUVIDPO_DATA=/data \
    HUVIDPO_COMMIT=$COMMIT \
    HUVIDPO_ENGINES=/data/engines
USER 10001
EXPOSE 3000 3001
# Weights of gigabytes take minutes to load: until then /readyz is 503, and the container is "starting".
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s \
    CMD ["python", "-m", "service.healthcheck"]
ENTRYPOINT ["/app/service/entrypoint.sh"]

FROM service AS cuda
COPY --from=cuda-packages /opt/venv /opt/venv

FROM service AS train
COPY --from=train-packages /opt/venv /opt/venv
COPY training training
COPY judging judging
COPY export export
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m"]

FROM service AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
