#!/usr/bin/env bash
# All set-up, then the tests; arguments go to pytest (`bash scripts/test.sh -m "not slow"` is the fast part).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --durations=5 "$@"
