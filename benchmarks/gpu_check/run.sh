#!/bin/bash
# HuViDPO at full size on one CUDA card, 8 minutes at most: fetch_wheels.sh first, then this, from anywhere.
# Needs torch, transformers, accelerate, peft, tqdm, rich, psutil. Arguments go to check.py; results: $OUT/rows.jsonl.
set -u
here="$(cd "$(dirname "$0")" && pwd)"
OUT="${OUT:-$here/../../runs/gpu_check}"
unpacked="$(mktemp -d)"
trap 'rm -rf "$unpacked"' EXIT
mkdir -p "$OUT"
for wheel in "$here"/wheels/*.whl; do
    [ -e "$wheel" ] && python3 -m zipfile -e "$wheel" "$unpacked"
done
export PYTHONPATH="$here/../..:$unpacked" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1
export TORCHINDUCTOR_CACHE_DIR="$unpacked/inductor"
timeout 480 python3 -P -m benchmarks.gpu_check.check --out "$OUT" "$@"
