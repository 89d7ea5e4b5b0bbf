#!/bin/sh
# For: actions/runner, after each job: removes what the tests left, so that the next job has the room.
# Needs: cachekit in /usr/local/bin; ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/path/of/job-completed.sh in the runner's .env.

# As in job-started.sh: the job is done, and is not failed for this.
PATH=/usr/local/bin:/usr/bin:/bin:$PATH
timeout 10m cachekit clean --stage post --plan self-hosted --soft-fail ||
    echo "::warning title=cachekit::the disk was not cleaned after this job (exit code $?)"
