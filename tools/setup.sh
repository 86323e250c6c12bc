#!/bin/sh
# Put everything into .venv: `setup.sh runtime` what running needs, `setup.sh dev` what tests need too.
# Quick when nothing has changed: the lock files' digest is kept in .venv.
set -eu
cd "$(dirname "$0")/.."
kind=${1:-runtime}
export PIP_USER=0 # a person's pip.conf may say to install beside .venv, where pip then refuses to
say() { printf 'setup: %s\n' "$*" >&2; }

find_python() {
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    say "Python 3.11 or newer is needed and was not found; name one with PYTHON=/path/to/python."
    exit 1
}

# Where .venv is and of which Python (3.11, whatever its build); it fails where that does not run any more, or where
# its making was cut off, as by a Debian without python3-venv.
made_of() {
    {
        [ -x .venv/bin/pip ] && pwd -P &&
            .venv/bin/python -c 'import sys; print(sys.implementation.cache_tag)'
    } 2>/dev/null
}

# Make .venv, anew where the folder was moved or its Python went away or is another one now.
make_venv() {
    if made=$(made_of) && { [ ! -f .venv/.made-of ] || [ "$(cat .venv/.made-of)" = "$made" ]; }; then
        printf '%s\n' "$made" >.venv/.made-of
        return
    fi
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
    made_of >.venv/.made-of
}

packages_of() {
    cat pyproject.toml requirements/build.lock requirements/"$1".lock | cksum
}

install_python_packages() {
    make_venv
    wanted=$(packages_of "$kind")
    stamp=.venv/.setup-$kind
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    say "installing the packages of requirements/$kind.lock (about half a minute)"
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes \
        -r requirements/build.lock -r requirements/"$kind".lock
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --editable .
    printf '%s\n' "$wanted" >"$stamp"
    # What the tests need holds what running needs.
    if [ "$kind" = dev ]; then
        packages_of runtime >.venv/.setup-runtime
    fi
}

have() { command -v "$1" >/dev/null 2>&1; }

install_test_programs() {
    missing=
    have bwrap || missing="$missing bubblewrap"
    have nginx || [ -x /usr/sbin/nginx ] || missing="$missing nginx"
    have git || missing="$missing git"
    have buildah || missing="$missing buildah"
    have mmdebstrap || missing="$missing mmdebstrap"
    have chromium || have google-chrome || missing="$missing chromium"
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && have apt-get; then
        say "installing$missing from the system's packages"
        apt-get update -qq >/dev/null || :
        # The same engine without windows, for half of the processor's time: Debian has it.
        quicker=chromium-headless-shell
        apt-cache show $quicker >/dev/null 2>&1 || quicker=
        # shellcheck disable=SC2086 # lists of names
        if DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends $missing $quicker >/dev/null; then
            return 0
        fi
    fi
    say "MISSING:$missing. The tests that need it will be skipped, and say so."
}

# What tests need from npm: `install_from_npm FOLDER NAME WHAT` puts it into build/NAME, where it is kept until its
# lock changes.
install_from_npm() {
    wanted=$(cat "$1/package-lock.json" | cksum)
    stamp=build/$2/.setup
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    mkdir -p "build/$2"
    cp .npmrc "$1/package.json" "$1/package-lock.json" "build/$2/"
    if command -v npm >/dev/null 2>&1 && npm ci --prefix "build/$2" --ignore-scripts \
        --loglevel=error --no-audit --no-fund --no-progress >/dev/null; then
        printf '%s\n' "$wanted" >"$stamp"
    else
        say "MISSING: $3, from npm. The tests that need it will be skipped."
    fi
}

install_python_packages
# Once: where PYTHONDONTWRITEBYTECODE is set, every start would compile them again.
.venv/bin/python -m compileall -q src
.venv/bin/python tools/install_goose.py
if [ "$kind" = dev ]; then
    install_test_programs
    install_from_npm tools/judges judges "redocly and spectral, which judge the OpenAPI document"
    install_from_npm tests/identity/provider provider "an OpenID Connect provider"
fi
say "done"
