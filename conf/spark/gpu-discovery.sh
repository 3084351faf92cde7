#!/usr/bin/env bash
# The GPUs of this machine, as Spark asks for them: spark.{driver,executor,worker}.resource.gpu.discoveryScript.
# One JSON object on standard output. A machine whose driver does not answer fails here, not in a task hours later.
set -euo pipefail

if ! indices=$(nvidia-smi --query-gpu=index --format=csv,noheader); then
    echo "gpu-discovery: wanted nvidia-smi to list GPUs; found that it fails; fix: the NVIDIA driver of $(hostname)" >&2
    exit 1
fi
quoted=$(tr -d ' \r' <<<"$indices" | sed '/^$/d; s/.*/"&"/' | paste -sd, -)
if [ -z "$quoted" ]; then
    echo "gpu-discovery: wanted GPUs; found none on $(hostname); fix: ask for none, or exclude this machine" >&2
    exit 1
fi
echo "{\"name\": \"gpu\", \"addresses\": [$quoted]}"
