#!/usr/bin/env bash
# Check and measure the project on an NVIDIA GPU: script/check_gpu.sh [--dry-run] [--only PART]
# [--minutes N] [OUT]; docs/gpu.md explains it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Without an environment from setup.sh, use the system's Python if it has the packages.
if [[ ! -x "$venv/bin/python" && -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] &&
    python3 -c "import torch, diffusers, transformers, fvcore, detectron2" 2> /dev/null; then
    python=python3
else
    find_python
fi
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" script/check_gpu.py "$@"
