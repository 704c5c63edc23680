#!/usr/bin/env bash
# Set up, check style and types, and run all but the slow tests; then run the numerics tests with
# restricted instruction sets. Arguments are passed to pytest, which then runs only once:
# script/run_tests.sh -k losses, script/run_tests.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bash "$root/script/setup.sh"
find_python
cd "$root"
say "ruff"
"$python" -m ruff check . && "$python" -m ruff format --check --quiet . ||
    die "see above; \`$python -m ruff check --fix && $python -m ruff format\` fix most of it."
say "mypy"
"$python" -m mypy -n 2 SDMatte || die "the type check failed, see above."
say "pytest"
(($#)) && exec "$python" -m pytest "$@"
status=0
# Measure coverage from Python 3.12 on, whose tracer is cheap; the older one takes 40 % more time.
coverage=()
if "$python" -c "import sys; sys.exit(sys.version_info < (3, 12))"; then
    coverage=(--cov --cov-report=term:skip-covered)
fi
# One process per core, up to four, with one thread each: PyTorch's threads would compete.
OMP_NUM_THREADS=1 COVERAGE_CORE=sysmon "$python" -m pytest -m "not slow" -n auto --maxprocesses 4 \
    --dist loadfile "${coverage[@]}" || status=$?
# Rounding differs between processors, and comparisons of two computations must hold on all of them.
# The run above had one thread; these have two, and fewer instructions. List the files, because
# importing the others takes a while.
mapfile -t files < <(grep -rl "mark.numerics" tests --include="test_*.py")
for restriction in "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2" \
    "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41"; do
    say "pytest -m numerics, $restriction"
    env $restriction "$python" -m pytest -m "numerics and not slow" -n auto --maxprocesses 2 \
        --dist loadfile "${files[@]}" || status=$?
done
exit "$status"
