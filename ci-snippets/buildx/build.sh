#!/bin/sh
# For: image builds that keep BuildKit's cache in a directory (type=local): verified, built, collected, saved.
# Needs: cachekit, Docker with buildx; arguments are those of docker buildx build, such as `build.sh --load -t app .`.
set -eu

# One builder with a name, found again by each job: builders made anew leave a container and a volume behind each time.
# Or BUILDX_BUILDER=default, with an engine that has the containerd image store; others cannot export a cache.
BUILDX_BUILDER=${BUILDX_BUILDER:-ci}
export BUILDX_BUILDER
cache=${BUILDX_CACHE:-$HOME/.cache/buildx-cache}
# What the expensive layers are made from.
key=$(cachekit key 'buildx-{arch}-{hash:Dockerfile,package-lock.json}')

# BuildKit does not expect two builds that write one cache: one of them would fail. So all of this is done by one at a
# time, and whoever is killed in it makes room for the next.
if [ "${1-}" != --locked ]; then
    mkdir -p "$cache"
    cachekit oci lock "$cache" --timeout 30m -- sh "$0" --locked "$@"
    # BuildKit adds to the directory with each build, and never removes anything.
    cachekit oci gc "$cache" --max-size 10G || echo "warning: the build cache was not collected" >&2
    # Only a whole cache is saved (--kind oci), none that a full disk has left unfinished. The image is good in any case.
    cachekit save --key "$key" --kind oci --soft-fail "$cache"
    exit
fi
shift

# On a machine that keeps its disk, the cache is there from the build before. None makes a build slow, one damaged layer
# in it makes the build fail: so it is read through first, and what is damaged is replaced.
if ! [ -e "$cache/index.json" ] || ! cachekit oci verify "$cache"; then
    rm -rf "$cache/index.json" "$cache/oci-layout" "$cache/blobs" "$cache/ingest" # and nothing else, whatever $cache is
    cachekit restore --key "$key" --restore-key 'buildx-' --kind oci --soft-fail --merge "$cache"
fi

docker buildx inspect "$BUILDX_BUILDER" >/dev/null 2>&1 ||
    docker buildx create --name "$BUILDX_BUILDER" --driver docker-container >/dev/null

# With ignore-error a cache that cannot be written (a full disk) is a warning: the image is good.
docker buildx build \
    --cache-from "type=local,src=$cache" \
    --cache-to "type=local,dest=$cache,mode=max,ignore-error=true" \
    "$@"

# Where several machines build the same image and a registry is near, type=registry is the better choice: each machine
# fetches only the layers that it needs, the registry checks them, and nothing has to be saved or collected here:
#   docker buildx build --cache-from type=registry,ref=registry.example/app:cache \
#       --cache-to type=registry,ref=registry.example/app:cache,mode=max,image-manifest=true,ignore-error=true ...
# A directory is better on one machine, without a registry, or where a cache has to be whole or absent.
