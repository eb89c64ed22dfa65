#!/bin/bash
# What a machine with torch and transformers lacks, as wheels beside this file, for Linux x86-64 and one Python:
#   benchmarks/gpu_check/fetch_wheels.sh [3.12]
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p wheels
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "${1:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest wheels \
    diffusers==0.42.1 importlib_metadata==10.2.0 pydantic==2.14.3 pydantic_core==2.50.4 typing_inspection==0.4.5 \
    annotated_types==0.8.0
ls wheels
