#!/usr/bin/env bash
# Sets up, checks the style, runs the tests. Arguments go to pytest: script/run_tests.sh -k losses
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bash "$root/script/setup.sh"
find_python
cd "$root"
say "ruff"
"$python" -m ruff check . ||
    die "the style check failed, see above; \`$python -m ruff check --fix\` mends most of it."
say "pytest"
exec "$python" -m pytest "$@"
