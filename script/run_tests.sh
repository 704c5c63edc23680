#!/usr/bin/env bash
# Sets up, checks the style, runs the tests, and those of rounding with fewer instructions and
# threads too. Arguments go to pytest, which then runs once: script/run_tests.sh -k losses
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bash "$root/script/setup.sh"
find_python
cd "$root"
say "ruff"
"$python" -m ruff check . ||
    die "the style check failed, see above; \`$python -m ruff check --fix\` mends most of it."
say "pytest"
(($#)) && exec "$python" -m pytest "$@"
status=0
"$python" -m pytest || status=$?
# Processors round differently: what compares two ways to compute the same has to hold on each.
for restriction in "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2" \
    "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41" "OMP_NUM_THREADS=1"; do
    say "pytest -m numerics, $restriction"
    env $restriction "$python" -m pytest -m numerics || status=$?
done
exit "$status"
