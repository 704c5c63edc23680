# Sourced by the scripts next to it: where things are, and how to stop with a sentence.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${SDMATTE_VENV:-$root/.venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"

# Threads that wait for others sleep: spinning, they take the cores from the loader's processes.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

say() { printf '[%s] %s\n' "$(basename "$0")" "$*"; }

die() {
    printf '[%s] error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# The Python that runs SDMatte: of the environment that setup.sh made, or of the active one.
find_python() {
    if [[ -x "$venv/bin/python" ]]; then
        python="$venv/bin/python"
    elif [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && command -v python > /dev/null; then
        python="$(command -v python)"
    else
        die "there is no environment in $venv: run \`bash $root/script/setup.sh\` first."
    fi
}
