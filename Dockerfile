# docker build -t huvidpo .                                   CUDA, used when the container sees a GPU (--gpus all)
# docker build -t huvidpo --build-arg PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" .   CPU only
# docker run -p 3000:3000 -p 3001:3001 huvidpo
# Separate pods and their environment variables: service/entrypoint.sh
FROM python:3.11-slim

ARG PIP_ARGS=""
WORKDIR /app
COPY requirements/serve.txt requirements/serve.txt
# hadolint ignore=SC2086
RUN pip install --no-cache-dir $PIP_ARGS -r requirements/serve.txt

COPY bentofile.yaml README.md LICENSE ./
COPY huvidpo huvidpo
COPY preferences preferences
COPY service service
COPY models models

RUN useradd --create-home --uid 1000 huvidpo
USER huvidpo
ENV BENTOML_DO_NOT_TRACK=True \
    BENTOML_HOME=/home/huvidpo/bentoml \
    HUVIDPO_ENGINES=/home/huvidpo/engines \
    BENTOML_HOST=0.0.0.0 \
    BENTOML_PORT=3000 \
    PYTHONUNBUFFERED=1
EXPOSE 3000 3001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3000/readyz', timeout=4)"]
ENTRYPOINT ["./service/entrypoint.sh"]
