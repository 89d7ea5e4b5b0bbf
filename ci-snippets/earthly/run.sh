#!/bin/sh
# For: Earthly targets with WITH DOCKER --cache-id, which keep one Docker data directory for all jobs of a machine.
# Needs: cachekit, Earthly 0.8 and its feature --docker-cache (see the Earthfile); for example `run.sh +integration`.
set -eu

# Two Docker daemons on one data directory break each other's images. Earthly locks it too, since 0.8.10, but a job that
# waits there is silent, and waits without an end. Here the log says who has the lock, a job gives up after 30 minutes,
# and the lock is free as soon as the job that had it is dead. One name for each cache id. Jobs of several users need one
# place for the lock that all of them may write: add --dir /var/cache/ci-locks.
exec cachekit lock run earthly-integration --timeout 30m -- earthly --ci "$@"
