# Sourced by the other scripts: paths, messages, and the Python to use.

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

# Find the Python of setup.sh's environment, or of the active environment.
find_python() {
    if [[ -x "$venv/bin/python" ]]; then
        python="$venv/bin/python"
    elif [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && command -v python > /dev/null; then
        python="$(command -v python)"
    else
        die "no environment in $venv: run \`bash $root/script/setup.sh\` first."
    fi
}
