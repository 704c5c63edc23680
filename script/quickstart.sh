#!/usr/bin/env bash
# From a fresh clone to a trained and scored matte: sets up, makes the embedded sample set, trains
# SDMatte_small on it, tests it, and leaves the results under output/quickstart/. Arguments go to
# `python -m SDMatte quickstart` (see its --help).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bash "$root/script/setup.sh"
find_python
cd "$root"
"$python" -m SDMatte quickstart "$@"
