#!/usr/bin/env bash
# Creates and updates .venv, and resolves the lock file. `make env` and `make lock` call it.
#
#   environment.sh sync STAMP [--gpu]   make .venv what the lock says; STAMP is written at the end
#   environment.sh lock [ARGS...]       resolve pyproject.toml into requirements.lock
#   environment.sh other FOLDER PACKAGE...   an environment beside .venv, for what cannot share it (benchmarks)
#
# Owns what must work before there is an environment; `throughline doctor` checks the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_version=0.13.8
uv_home="${XDG_CACHE_HOME:-$HOME/.cache}/throughline/uv-$uv_version"
needed_gb=12

say() { printf '  environment: %s\n' "$*" >&2; }
is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_uv() {
    local candidate
    for candidate in uv "$uv_home/bin/uv" "$HOME/.local/bin/uv"; do
        # A shim can be on PATH with nothing behind it: ask it for its version.
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

find_python() {
    local candidate uv
    for candidate in python3.11 python3 python; do
        if is_311 "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    uv=$(find_uv) && "$uv" python find --no-python-downloads 3.11 2>/dev/null
}

java_major() {
    local java=java
    if [ -n "${JAVA_HOME:-}" ]; then java="$JAVA_HOME/bin/java"; fi
    "$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1
}

# Everything that would otherwise fail minutes later, named at once.
preflight() {
    local problems=() python java free_kb

    if python=$(find_python); then
        if ! "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'; then
            problems+=("the headers of Python 3.11 are missing: apt-get install python3.11-dev")
        fi
        if ! find_uv >/dev/null && ! "$python" -c 'import ensurepip' 2>/dev/null &&
            ! "$python" -m pip --version >/dev/null 2>&1; then
            problems+=("neither uv nor pip nor venv is there: apt-get install python3.11-venv")
        fi
    else
        problems+=("Python 3.11 is missing: apt-get install python3.11 python3.11-dev python3.11-venv (or: uv python install 3.11)")
    fi

    java=$(java_major || true)
    if [ -z "$java" ]; then
        problems+=("Java 17 or newer is missing: apt-get install openjdk-17-jre-headless")
    elif [ "$java" -lt 17 ]; then
        problems+=("Java is version $java, 17 or newer is needed: apt-get install openjdk-17-jre-headless (and check JAVA_HOME)")
    fi

    if ! command -v "${CXX:-g++}" >/dev/null && ! command -v c++ >/dev/null; then
        problems+=("a C++ compiler is missing: apt-get install g++")
    fi

    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    if [ ! -e .venv/.synced.lock ] && [ "$free_kb" -lt $((needed_gb * 1024 * 1024)) ]; then
        problems+=("disk space: $needed_gb GB are needed here, $((free_kb / 1024 / 1024)) GB are free")
    fi

    if [ ${#problems[@]} -gt 0 ]; then
        printf '  %s\n' "${problems[@]}" >&2
        exit 1
    fi
}

# In a folder of its own: a system Python marked as externally managed refuses `pip install`.
bootstrap_uv() {
    local python
    python=$(find_python)
    say "installing uv $uv_version"
    rm -rf "$uv_home.new"
    if "$python" -m venv "$uv_home.new" >/dev/null 2>&1; then
        "$uv_home.new/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
        # The binary alone is what moves: scripts of a moved venv would point to the old folder.
        mkdir -p "$uv_home/bin"
        mv -f "$uv_home.new/bin/uv" "$uv_home/bin/uv"
        rm -rf "$uv_home.new"
    else
        "$python" -m pip install --quiet --user "uv==$uv_version"
    fi
}

require_uv() {
    if ! uv=$(find_uv); then
        bootstrap_uv
        uv=$(find_uv) || { say "uv was installed but does not run: install it by hand"; exit 1; }
    fi
}

sync() {
    local stamp=$1
    shift
    # On this file, so that no lock file is left behind; two makes at once take turns.
    exec 9<"deploy/environment.sh"
    flock 9

    preflight
    require_uv

    # A sync that was killed leaves packages that look installed and are not; scripts in an
    # environment that was copied or moved call the Python, and the code, of the old place.
    if [ -e .venv/.syncing ] || { [ -e .venv ] && ! is_311 .venv/bin/python; } ||
        { [ -e .venv/.home ] && [ "$(<.venv/.home)" != "$PWD" ]; }; then
        say ".venv is incomplete, or of another place or Python: starting anew"
        rm -rf .venv
    fi
    if [ ! -e .venv ]; then
        "$uv" venv --quiet --python "$(find_python)" .venv
    fi
    echo "$PWD" >.venv/.home
    touch .venv/.started

    # Compared by content: after a mere touch of the lock, running services keep their files.
    if ! cmp -s requirements.lock .venv/.synced.lock; then
        say "installing the packages of requirements.lock (7 GB; minutes the first time)"
        touch .venv/.syncing
        # Two packages come as source: what builds them is pinned by the same lock.
        # Downloads are shown; the list of 300 packages is not.
        "$uv" pip sync --python .venv/bin/python --require-hashes \
            --build-constraints requirements.lock requirements.lock 2>&1 |
            { grep --line-buffered -v '^ [-+~] ' || true; } >&2
        cp requirements.lock .venv/.synced.lock
        rm .venv/.syncing
    fi
    # Without isolation: the build backend is the locked one, nothing is fetched.
    "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .

    .venv/bin/python deploy/horovod/build.py "$@"

    rm -f .venv/.stamp-*
    mv .venv/.started "$stamp"
}

lock() {
    require_uv
    "$uv" pip compile pyproject.toml --group dev --group build --python-version 3.11 \
        --generate-hashes --no-header --no-annotate --quiet -o requirements.lock "$@"
    # Which index a machine uses is that machine's business.
    if grep -nE '://|^-' requirements.lock; then
        say "requirements.lock holds an address or an option: see the lines above"
        exit 1
    fi
}

other() {
    local folder=$1
    shift
    require_uv
    # Complete or not there: what was interrupted is made anew.
    [ ! -e "$folder/.complete" ] || return 0
    rm -rf "$folder"
    "$uv" venv --quiet --python "$(find_python)" "$folder"
    "$uv" pip install --quiet --python "$folder/bin/python" "$@"
    touch "$folder/.complete"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
sync | lock | other) "$command" "$@" ;;
*)
    echo "usage: environment.sh sync STAMP [--gpu] | lock [ARGS...] | other FOLDER PACKAGE..." >&2
    exit 2
    ;;
esac
