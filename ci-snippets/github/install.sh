#!/usr/bin/env bash
# Puts the command `cachekit` on PATH for the steps that follow ($GITHUB_PATH), and prints its directory. If there is none on
# PATH yet, it is installed into the runner's tool cache: the checkout that this file is part of, so that the commit in
# `uses:` is the version that runs, and what it needs from PyPI in the versions, and with the digests, of requirements.txt.
# The second time, on a runner that keeps its tool cache, nothing is downloaded.
set -euo pipefail

if found=$(command -v cachekit); then
    dirname "$found" | tee -a "${GITHUB_PATH:-/dev/null}" # a later step could change PATH
    exit 0
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=$(cd "$here/../.." && pwd -P)
: "${RUNNER_TOOL_CACHE:?is not set: this runs in GitHub Actions}"

# The system's Python first: what setup-python puts on PATH may be another one in the next step.
python=
for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11 \
    "$RUNNER_TOOL_CACHE"/Python/3.1[1-9].*/*/bin/python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "::error title=cachekit::there is no Python 3.11 or newer here (with its venv module)%0A" \
        "hint: put a step with actions/setup-python before this one; on Debian install python3-venv" >&2
    exit 1
fi

digest=$(
    {
        "$python" -c 'import sys; print(sys.version, sys.executable)'
        cd "$checkout"
        find cachekit ci-snippets/github/requirements.txt -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -c1-16
)
place=$RUNNER_TOOL_CACHE/cachekit/$digest
if [ ! -x "$place/command/cachekit" ]; then
    # Beside its place, then renamed: a job that is cancelled half way leaves nothing that looks finished.
    mkdir -p "$RUNNER_TOOL_CACHE/cachekit"
    making=$(mktemp -d "$place.XXXXXX")
    trap 'rm -rf "$making"' EXIT
    "$python" -m venv "$making" >&2
    "$making/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --require-hashes --only-binary :all: -r "$here/requirements.txt" >&2
    packages=$("$making/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp -R "$checkout/cachekit" "$packages"
    # A directory with the command alone: PATH gets no second Python.
    mkdir "$making/command"
    printf '#!/bin/sh\nexec "%s/bin/python" -I -m cachekit "$@"\n' "$place" >"$making/command/cachekit"
    chmod 755 "$making/command/cachekit" "$making"
    mv -T "$making" "$place" 2>/dev/null || [ -x "$place/command/cachekit" ] # another job may have been first
fi
"$place/command/cachekit" --version >&2
printf '%s\n' "$place/command" | tee -a "${GITHUB_PATH:-/dev/null}"
