#!/usr/bin/env bash
# Make .venv ready for `make demo` and `make test`, once: a second call sees that nothing changed and ends at once.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
STAMP=$VENV/.setup
UV=uv==0.13.8
OVERRIDES=scripts/cpu-overrides.txt

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

suitable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if suitable "$candidate"; then echo "$candidate"; return; fi
    done
    fail "Baton needs Python 3.11, 3.12 or 3.13: apt-get install python3 python3-venv, or set PYTHON=/path/to/python3"
}

can_load() { "$1" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$2" 2>/dev/null; }

# Install Debian packages where we may, else say how.
apt_install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $*"
        if { timeout 120 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y --no-install-recommends "$@"; } >/dev/null 2>&1; then
            return 0
        fi
    fi
    say "missing on this system: $*; run: sudo apt-get install $*"
    return 1
}

system_libraries() {
    local missing=()
    can_load "$1" libibverbs.so.1 || missing+=(libibverbs1)
    can_load "$1" libnuma.so.1 || missing+=(libnuma1)
    can_load "$1" libcurl.so.4 || missing+=(libcurl4)
    if [ ${#missing[@]} -gt 0 ] && ! apt_install "${missing[@]}"; then
        say "going on without: only KV transfers through Mooncake need them"
    fi
}

make_venv() {
    if suitable "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    rm -rf "$VENV"
    if ! "$1" -m venv "$VENV" >/dev/null 2>&1; then
        apt_install python3-venv || exit 1
        rm -rf "$VENV"
        "$1" -m venv "$VENV"
    fi
}

# uv does not read pip's settings: hand over an index, wheel folder or certificate that was set for pip.
adopt_pip_settings() {
    local name value
    while IFS='=' read -r name value; do
        value=${value//\'/}
        case ${name##*.} in
            index-url) export UV_DEFAULT_INDEX=$value ;;
            extra-index-url) export UV_INDEX=$value ;;
            find-links) export UV_FIND_LINKS=${value// /,} ;;
            cert) export SSL_CERT_FILE=$value ;;
        esac
    done < <("$VENV/bin/python" -m pip config list 2>/dev/null || true)
}

install_packages() {
    local uv=("$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python") backend=() torch
    torch=$(grep '^torch==' constraints.txt)
    if UV_HTTP_RETRIES=0 timeout 20 "${uv[@]}" --dry-run --reinstall --no-deps --torch-backend cpu "$torch" 2>/dev/null; then
        backend=(--torch-backend cpu)
    else
        say "PyTorch's CPU-only wheels are out of reach: taking the general ones, about 2 GB"
    fi
    "${uv[@]}" --constraints constraints.txt --overrides "$OVERRIDES" "${backend[@]}" --editable '.[engine,test]'
}

main() {
    exec 9>.setup.lock
    flock 9
    local python fingerprint
    fingerprint=$(sha256sum pyproject.toml constraints.txt "$OVERRIDES" scripts/setup.sh | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$STAMP" 2>/dev/null)" = "$fingerprint" ] && "$VENV/bin/python" -c '' 2>/dev/null; then return; fi
    python=$(find_python)
    say "making $VENV with $("$python" --version); this happens once"
    system_libraries "$python"
    make_venv "$python"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$UV"
    adopt_pip_settings
    if ! install_packages; then
        say "uv could not install everything: trying again with pip"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engine,test]'
    fi
    echo "$fingerprint" >"$STAMP"
    say "done in $SECONDS s"
}

main
