#!/bin/sh
# Installs the given requirement files into a virtual environment: tools/install.sh VENV FILE...
#
# Makes the environment when it is missing. uv does the work when it is on PATH, else pip. uv does not read
# pip's configuration, so the package sources that pip is configured with are handed on to it: a CPU wheel
# of torch that find-links offers would otherwise lose to the index's build.
set -eu

venv=$1
shift

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Larder needs Python 3.11 or newer; none is on PATH (PYTHON=/path/to/python overrides)." >&2
    exit 1
}

# The values of one pip setting, from the environment and every configuration file, separated by $2.
pip_setting() {
    "$python" -m pip config list 2>/dev/null |
        sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | sed 's/\\n/ /g' | tr -s ' \n' '\n' |
        awk -v joint="$2" 'NF && !seen[$0]++ { printf "%s%s", (n++ ? joint : ""), $0 }'
}

# Exports $1 with value $2, unless it is set already or there is nothing to hand on.
hand_on() {
    if [ -n "$2" ] && [ -z "$(printenv "$1" || true)" ]; then
        export "$1=$2"
    fi
}

python=$(find_python)
if command -v uv >/dev/null 2>&1; then
    hand_on UV_FIND_LINKS "$(pip_setting find-links ,)"
    hand_on UV_DEFAULT_INDEX "$(pip_setting index-url ' ')"
    hand_on UV_INDEX "$(pip_setting extra-index-url ' ')"
    hand_on UV_INDEX_STRATEGY unsafe-best-match
    [ -x "$venv/bin/python" ] || uv venv --quiet --python "$python" "$venv"
    for file in "$@"; do set -- "$@" -r "$file"; shift; done
    exec uv pip install --quiet --python "$venv/bin/python" "$@"
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || {
        echo "'$python -m venv' failed; Debian and Ubuntu keep it in the package python3-venv. uv does without it." >&2
        exit 1
    }
fi
for file in "$@"; do set -- "$@" -r "$file"; shift; done
exec "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
