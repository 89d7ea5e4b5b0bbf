#!/bin/sh
# For: actions/runner, before each job: makes room up to the plan's goal, so that no job begins on a full disk.
# Needs: cachekit in /usr/local/bin; ACTIONS_RUNNER_HOOK_JOB_STARTED=/path/of/job-started.sh in the runner's .env.

# The runner waits for a hook as long as it takes, and fails the job if the hook fails. But a job with less room is
# better than none: whatever goes wrong here is a warning beside the job.
PATH=/usr/local/bin:/usr/bin:/bin:$PATH
timeout 10m cachekit clean --stage pre --plan self-hosted --soft-fail ||
    echo "::warning title=cachekit::the disk was not cleaned before this job (exit code $?)"
