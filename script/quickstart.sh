#!/usr/bin/env bash
# From a fresh clone to scored mattes: set up, create the embedded sample set, train SDMatte_small on
# it and test it. Results are in output/quickstart/. Arguments are passed to
# `python -m SDMatte quickstart` (see its --help).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bash "$root/script/setup.sh"
find_python
cd "$root"
"$python" -m SDMatte quickstart "$@"
