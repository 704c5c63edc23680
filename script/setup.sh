#!/usr/bin/env bash
# Set up the environment: a virtual environment, the packages of requirements.txt in the versions of
# constraints.txt, detectron2, and this package. Does nothing if the environment is up to date.
#
#   SDMATTE_VENV=DIR    environment to use instead of .venv, for instance "$VIRTUAL_ENV"
#   SDMATTE_PYTHON=EXE  Python to use instead of the first suitable one on the PATH
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
trap 'say "interrupted; run this again to finish."; exit 130' INT

sources=(requirements.txt requirements-dev.txt requirements-finetune.txt constraints.txt
    pyproject.toml script/setup.sh tools/install_detectron2.py)
stamp="$venv/.sdmatte-stamp"     # hash of what is installed
pending="$venv/.sdmatte-pending" # exists until everything is installed

# 3.14 is the newest Python with wheels for all of constraints.txt.
is_suitable='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))'

find_base_python() {
    local candidate candidates
    candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z "${SDMATTE_PYTHON:-}" ]] || candidates=("$SDMATTE_PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$is_suitable" > /dev/null 2>&1; then
            base_python="$candidate"
            return
        fi
    done
    [[ -z "${SDMATTE_PYTHON:-}" ]] ||
        die "SDMATTE_PYTHON=$SDMATTE_PYTHON does not run or is not Python 3.10 to 3.14."
    die "no Python 3.10 to 3.14 on the PATH: install one (for instance your system's package" \
        "python3, or from python.org), or set SDMATTE_PYTHON=/path/to/python3."
}

# Hash of everything that determines the contents of the environment.
fingerprint() {
    "$venv/bin/python" - "$root" "${sources[@]}" << 'PY'
import hashlib, sys
digest = hashlib.sha256(f"{sys.version} {sys.prefix} {sys.argv[1]}".encode())
for name in sys.argv[2:]:
    with open(name, "rb") as file:
        digest.update(file.read())
sys.stdout.write(digest.hexdigest())
PY
}

make_venv() {
    find_base_python
    local python_version
    python_version="$("$base_python" -c 'import platform; print(platform.python_version())')"
    "$base_python" -c 'import ensurepip, venv' > /dev/null 2>&1 ||
        die "Python $python_version ($base_python) has no venv module: install it (on Debian and" \
            "Ubuntu: apt install python3-venv) and run this again."
    say "creating the virtual environment $venv with Python $python_version"
    "$base_python" -m venv "$venv" ||
        die "could not create $venv, see the message above. Is the disk full or the folder" \
            "read-only? If not, remove $venv and run this again."
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [[ -x "$venv/bin/python" && -f "$stamp" && "$(fingerprint)" == "$(< "$stamp")" ]]; then
    say "$venv is up to date."
    exit 0
fi

reinstall=
if [[ -e "$pending" ]]; then
    say "the last set-up of $venv did not finish: starting over"
    if [[ "$venv" == "$root/.venv" ]]; then rm -rf "$venv"; else reinstall=--force-reinstall; fi
fi
if ! "$venv/bin/python" -c "" > /dev/null 2>&1; then
    if [[ "$venv" == "$root/.venv" ]]; then
        rm -rf "$venv" # its Python was removed
    elif [[ -d "$venv" && -n "$(ls -A "$venv")" ]]; then
        die "$venv has no working Python: remove it, or set SDMATTE_VENV to another folder."
    fi
    make_venv
elif ! "$venv/bin/python" -c "$is_suitable"; then
    die "the Python in $venv is not 3.10 to 3.14: remove $venv and run this again."
fi
# Environments made by other tools may lack pip.
pip --version > /dev/null 2>&1 || "$venv/bin/python" -m ensurepip > /dev/null 2>&1 ||
    die "$venv has no pip and no ensurepip: remove $venv and run this again."

rm -f "$stamp"
touch "$pending"

# Progress bars are for terminals, not for logs.
shown=--quiet
[[ ! -t 1 ]] || shown=--progress-bar=on

network="See pip's message above. Check the network, the free disk space (7 GB) and pip's settings
  (\`pip config list\`: index, proxy, certificate), then run this again; downloads are kept."

say "installing the packages of requirements.txt (downloads about 3 GB the first time)"
# Before 23.1, pip cannot install an editable package without a setup.py. From 26.3, it refuses
# releases whose metadata name a URL, such as the archive of detectron2 (in an unused extra).
pip install "$shown" "pip>=23.1,<26.3" || die "could not install a suitable pip. $network"
pip install "$shown" $reinstall --constraint constraints.txt \
    --requirement requirements.txt --requirement requirements-dev.txt ||
    die "could not install the packages. $network"

say "installing detectron2"
"$venv/bin/python" tools/install_detectron2.py || die "could not install detectron2, see above."

say "installing SDMatte (editable)"
pip install "$shown" --no-deps --no-build-isolation --editable . ||
    die "could not install this package; see pip's message above."

say "checking that it imports"
"$venv/bin/python" -c '
import torch, torchvision, cv2, diffusers, transformers
import SDMatte.compat, detectron2.engine
' || die "the environment is damaged: remove $venv and run this again."

fingerprint > "$stamp"
rm -f "$pending"
say "done: $venv"
