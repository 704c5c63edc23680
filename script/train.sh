#!/usr/bin/env bash
# Train: script/train.sh [CONFIG] [key=value ...]; all options: script/train.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

find_python
exec "$python" -m SDMatte train "$@"
