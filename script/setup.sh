#!/usr/bin/env bash
# Makes the environment that everything else runs in: a virtual environment, the packages of
# requirements.txt in the versions of constraints.txt, detectron2, and this package itself. Run it
# as often as you like: what is current is left alone, what an interrupted run left is mended.
#
#   SDMATTE_VENV=DIR    another environment than .venv, for instance "$VIRTUAL_ENV"
#   SDMATTE_PYTHON=EXE  another Python than the first suitable one on the PATH
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

sources=(requirements.txt requirements-dev.txt requirements-finetune.txt constraints.txt
    pyproject.toml script/setup.sh tools/install_detectron2.py)
stamp="$venv/.sdmatte-stamp"     # what was installed, by hash; there once everything is
pending="$venv/.sdmatte-pending" # there while pip works: found at the start, it was interrupted

# The upper end is the newest Python that constraints.txt has wheels for.
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
        die "SDMATTE_PYTHON=$SDMATTE_PYTHON does not run, or is not Python 3.10 to 3.14."
    die "no Python 3.10 to 3.14 on the PATH: install one (for instance your system's package" \
        "python3, or from python.org), or name it with SDMATTE_PYTHON=/path/to/python3."
}

# Hash of all that decides what is in the environment.
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
        die "Python $python_version ($base_python) comes without venv: install it (on Debian and" \
            "Ubuntu: apt install python3-venv) and run this again."
    say "making the virtual environment $venv with Python $python_version"
    "$base_python" -m venv "$venv" ||
        die "could not make $venv: its message stands above. Is the disk full or the folder" \
            "read-only? Otherwise remove $venv and run this again."
}

# What pip was writing when it was interrupted counts as installed, though files are missing: take
# its record away, and the next step installs it anew.
mend() {
    say "an earlier run did not finish: looking for packages that are not complete"
    "$venv/bin/python" - << 'PY'
import csv, pathlib, shutil, sys, sysconfig

site = pathlib.Path(sysconfig.get_path("purelib"))

def is_complete(info):
    try:
        with open(info / "RECORD", newline="", encoding="utf-8") as record:
            sizes = {site / path: size for path, _, size in csv.reader(record)}
        # Python writes .pyc files anew; rows without a size are what pip itself added.
        return bool(sizes) and (info / "METADATA").is_file() and all(
            path.stat().st_size == int(size)
            for path, size in sizes.items()
            if size and path.suffix != ".pyc"
        )
    except (OSError, ValueError):
        return False

for info in sorted(site.glob("*.dist-info")):
    if is_complete(info):
        continue
    if info.name.startswith("pip-"):
        sys.exit("pip itself is damaged")
    sys.stdout.write(f"  {info.name[:-10]} is incomplete and will be installed again\n")
    shutil.rmtree(info)
for rest in site.glob("~*"):  # what pip had put aside
    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
PY
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [[ -x "$venv/bin/python" && -f "$stamp" && "$(fingerprint)" == "$(< "$stamp")" ]]; then
    say "$venv is current."
    exit 0
fi

if ! "$venv/bin/python" -c "" > /dev/null 2>&1; then
    # An interrupted start, or the Python that it was made with is gone.
    if [[ "$venv" == "$root/.venv" ]]; then
        rm -rf "$venv"
    elif [[ -d "$venv" && -n "$(ls -A "$venv")" ]]; then
        die "$venv holds no Python that runs: remove it, or set SDMATTE_VENV to another folder."
    fi
    make_venv
elif ! "$venv/bin/python" -c "$is_suitable"; then
    die "the Python in $venv is not 3.10 to 3.14: remove $venv and run this again."
fi
# An environment made by another tool, or left by an interrupted start, may lack pip.
pip --version > /dev/null 2>&1 || "$venv/bin/python" -m ensurepip > /dev/null 2>&1 ||
    die "$venv has no pip and cannot get it from ensurepip: remove $venv and run this again."

rm -f "$stamp"
if [[ -e "$pending" ]]; then
    mend || die "$venv cannot be mended: remove it and run this again."
fi
touch "$pending"

# A few hundred lines of progress are for a person who waits, not for a log.
shown=--quiet
[[ ! -t 1 ]] || shown=--progress-bar=on

network="pip's message stands above. Check the network, the free disk space (7 GB) and pip's own
  settings (\`pip config list\`: index, proxy, certificate), then run this again; what was fetched
  is kept."

say "installing the packages of requirements.txt (about 3 GB to fetch the first time)"
# Older than 23.1 cannot install an editable package without its setup.py. From 26.3 on, pip refuses
# to download a release whose metadata name a URL, and the archive of detectron2 does so in an extra
# that nothing here installs (tools/install_detectron2.py).
pip install "$shown" "pip>=23.1,<26.3" || die "could not install a suitable pip. $network"
pip install "$shown" --constraint constraints.txt \
    --requirement requirements.txt --requirement requirements-dev.txt ||
    die "could not install the packages. $network"

say "installing detectron2"
"$venv/bin/python" tools/install_detectron2.py || die "could not install detectron2, see above."

say "installing SDMatte itself, editable"
pip install "$shown" --no-deps --no-build-isolation --editable . ||
    die "could not install this package; pip's message stands above."

say "checking that it imports"
"$venv/bin/python" -c '
import torch, torchvision, cv2, diffusers, transformers
import SDMatte.compat, detectron2.engine
' || die "the environment is damaged: remove $venv and run this again."

fingerprint > "$stamp"
rm -f "$pending"
say "done: $venv"
