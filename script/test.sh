#!/usr/bin/env bash
# Test: script/test.sh [CONFIG CHECKPOINT ...] [key=value ...]; all options: script/test.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

find_python
exec "$python" -m SDMatte test "$@"
