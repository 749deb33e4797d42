# Sourced by quickstart.sh and test.sh: a virtual environment in .venv with videornn and all it needs.
# Run again, it does nothing until pyproject.toml changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "videornn needs Python 3.10 or newer; '$python' is not. Set PYTHON=/path/to/python3.12" >&2
    exit 2
fi
stamp=".venv/videornn-$(cksum < pyproject.toml | tr ' ' '-')"
if [ ! -f "$stamp" ]; then
    echo "installing videornn into .venv (PyTorch is large: some minutes the first time)"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet --editable '.[test]'
    touch "$stamp"
fi
