#!/bin/sh
# deploy/image/run.sh IMAGE DATA: runs an image without a container engine, as a cluster would: as a user who is not root,
# its root read-only, /tmp empty, /data the folder DATA, on this machine's network. Needs root, buildah and bubblewrap.
# Environment variables of the image are set; those named HUVIDPO_* and BENTOML_* here come after them.
set -eu
image="${1:?usage: deploy/image/run.sh localhost/huvidpo:cpu DATA}"
data="${2:?usage: deploy/image/run.sh localhost/huvidpo:cpu DATA}"
container="$(buildah from "$image")"
trap 'buildah rm "$container" >/dev/null' EXIT
root="$(buildah mount "$container")"
environment="$(buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container")"
own="$(env | grep -E '^(HUVIDPO|BENTOML)_' || true)"
set --
while IFS='=' read -r name value; do
    [ -z "$name" ] || set -- "$@" --setenv "$name" "$value"
done <<EOF
$environment
$own
EOF
env -i /usr/bin/bwrap --ro-bind "$root" / --dev /dev --proc /proc --tmpfs /tmp --bind "$data" /data \
    --ro-bind /etc/hosts /etc/hosts --unshare-user --unshare-pid --uid 10001 --gid 10001 --die-with-parent --chdir /app \
    "$@" /app/service/entrypoint.sh &
running=$!
trap 'kill "$running"' TERM INT
wait "$running" || wait "$running" || true
