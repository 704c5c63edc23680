# Sourced by the other scripts: paths, messages, and the Python to use.

unset CDPATH # with it, cd may print a path or choose another folder
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${SDMATTE_VENV:-$root/.venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"

# Let waiting threads sleep; spinning ones would take cores from the loader's processes.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

say() { printf '[%s] %s\n' "$(basename "$0")" "$*"; }

die() {
    printf '[%s] error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Exits with 0 if setup.sh has finished here, or if its packages were installed by other means.
is_ready='
import os, sys
from importlib.util import find_spec
packages = ("torch", "diffusers", "psutil", "detectron2")
is_pending = os.path.exists(os.path.join(sys.prefix, ".sdmatte-pending"))
sys.exit(is_pending or not all(map(find_spec, packages)))'

# Find the Python of setup.sh's environment, or of the active environment.
find_python() {
    if [[ -x "$venv/bin/python" ]]; then
        python="$venv/bin/python"
    elif [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && command -v python > /dev/null; then
        python="$(command -v python)"
    else
        die "no environment in $venv: run \`bash $root/script/setup.sh\` first."
    fi
    "$python" -c "$is_ready" > /dev/null 2>&1 ||
        die "$python does not run, lacks packages, or its set-up did not finish: run" \
            "\`bash $root/script/setup.sh\` first."
}
