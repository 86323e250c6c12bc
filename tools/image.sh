#!/bin/sh
# Build images/NAME/Dockerfile without a registry: `image.sh NAME` makes build/NAME.tar, an OCI
# archive of the image NAME:VERSION. With a registry any builder makes the same of the Dockerfile.
#
# The base is made of Debian's packages, from GREYLAG_DEBIAN_MIRROR if that is set. It and all
# finished steps are kept in build/image, so that only what has changed is built again; remove that
# folder (`make clean`) to have Debian's newest packages.
set -eu
cd "$(dirname "$0")/.."
name=$1
suite=trixie
work=build/image
archive=build/$name.tar
say() { printf 'image: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

[ -f "images/$name/Dockerfile" ] || fail "there is no images/$name/Dockerfile"
[ "$(id -u)" = 0 ] || fail "root is needed, to make files of other owners; else use docker build"
for program in buildah mmdebstrap; do
    command -v $program >/dev/null || fail "$program was not found: install Debian's package $program"
done
mkdir -p "$work"
exec 9>"$work/lock"
flock 9 # two builds would share the same store

# Builds that were cut off leave containers and mounts, which would keep the folder from being removed.
tidy() {
    build rm --all >/dev/null 2>&1 || :
    umount -q "$work/store/overlay" 2>/dev/null || :
}
trap tidy EXIT

build() { buildah --root "$PWD/$work/store" --runroot "$PWD/$work/run" "$@"; }

# Make the base, once for each mirror and state of this file; prints its name.
base() {
    key=$({ cat tools/image.sh; printf %s "${GREYLAG_DEBIAN_MIRROR:-}"; } | cksum | cut -d' ' -f1)
    tag=localhost/debian:$suite-$key
    if ! build inspect --type image "$tag" >/dev/null 2>&1; then
        say "making the base of Debian's packages (about half a minute, once)"
        # Devices and names are the running container's matter, not this machine's. As in Debian's
        # own slim image nothing is kept that only people read, or that apt makes anew: each step's
        # layer would hold it again. dpkg does not wait for the disk.
        kept='Dir::Cache { pkgcache ""; srcpkgcache ""; }; APT::Keep-Downloaded-Packages "false";'
        KEPT_BY_APT=$kept mmdebstrap --quiet --format=tar --variant=apt --skip=output/dev \
            --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' \
            --dpkgopt='path-exclude=/usr/share/info/*' \
            --customize-hook='rm -f "$1/etc/hostname" "$1/etc/hosts" "$1/etc/resolv.conf"' \
            --customize-hook='rm -f "$1"/var/cache/apt/*.bin' \
            --customize-hook='echo "$KEPT_BY_APT" >"$1/etc/apt/apt.conf.d/99kept"' \
            "$suite" "$work/base.tar" ${GREYLAG_DEBIAN_MIRROR:+"$GREYLAG_DEBIAN_MIRROR"} >&2
        container=$(build from scratch)
        build add --quiet "$container" "$work/base.tar" / >/dev/null
        build commit --quiet --rm "$container" "$tag" >/dev/null
        rm "$work/base.tar"
    fi
    printf %s "$tag"
}

# Print the options that lend the build this machine's own configuration of pip, npm and TLS.
secrets() {
    lend() { [ ! -r "$2" ] || printf -- '--secret id=%s,src=%s ' "$1" "$2"; }
    for file in /etc/pip.conf "$HOME/.config/pip/pip.conf" "${PIP_CONFIG_FILE:-}"; do
        [ ! -r "$file" ] || pip=$file # the last is the one that pip heeds most
    done
    lend pip.conf "${pip:-}"
    lend npmrc "${NPM_CONFIG_USERCONFIG:-$HOME/.npmrc}"
    lend ca-certificates "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}"
}

# Print a digest of all that an image is made of: what .dockerignore lets through, and how.
sources() {
    {
        cat .dockerignore "images/$name/Dockerfile" tools/image.sh
        printf '%s\n' "${GREYLAG_DEBIAN_MIRROR:-}"
        sed -n 's/^!//p' .dockerignore | while IFS= read -r part; do
            find "$part" \( -name __pycache__ -o -name '*.egg-info' \) -prune -o -type f -print
        done | LC_ALL=C sort | xargs sha256sum
    } | sha256sum
}

sources=$(sources)
if [ -f "$archive" ] && [ "$sources" = "$(cat "$work/$name.sources" 2>/dev/null)" ]; then
    say "$archive is made of the same as before"
    exit
fi
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/greylag/__init__.py)
base=$(base)
# shellcheck disable=SC2046 # several options
build bud --quiet --layers --jobs 2 --isolation chroot --network host --timestamp 1735689600 \
    --build-arg "BASE=$base" $(secrets) --label "org.opencontainers.image.version=$version" \
    --file "images/$name/Dockerfile" --tag "localhost/$name:$version" . >"$work/$name.log" 2>&1 9>&- || {
    tail -n 20 "$work/$name.log" >&2
    fail "it could not be built: all that was said is in $work/$name.log"
}
built=$(build images --quiet --no-trunc "localhost/$name:$version")
if [ -f "$archive" ] && [ "$built" = "$(cat "$work/$name.built" 2>/dev/null)" ]; then
    printf %s "$sources" >"$work/$name.sources"
    say "$archive holds $name:$version as it is: nothing has changed"
    exit
fi
rm -f "$archive.part"
# Level 9 takes four times as long for one hundredth less.
build push --quiet --compression-level 7 "localhost/$name:$version" \
    "oci-archive:$archive.part:docker.io/library/$name:$version"
mv "$archive.part" "$archive"
printf %s "$built" >"$work/$name.built"
printf %s "$sources" >"$work/$name.sources"
say "$archive is $name:$version, $(($(stat -c %s "$archive") / 1000000)) MB"
