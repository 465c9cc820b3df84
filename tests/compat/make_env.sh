#!/bin/sh
# Makes the environment in which the unmodified lmcache client runs: tests/compat/make_env.sh [DIRECTORY]
# The directory defaults to .venv-compat in the checkout; an environment that is complete is left as it is.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/../../.venv-compat}
mark=$venv/.installed

if [ -f "$mark" ] && [ "$mark" -nt "$here/requirements-compat.txt" ]; then
    exit 0
fi
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements-compat.txt"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps lmcache==0.5.6
"$venv/bin/python" -c 'import lmcache.integration.vllm.vllm_multi_process_adapter' >/dev/null
touch "$mark"
