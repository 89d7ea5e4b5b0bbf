"""Carrying out a plan: cheapest rule first, measured after each, stopped at the goal.

A dry run goes the same way; only the calls that change something are left out.
"""

from __future__ import annotations

import time

from cachekit.clean.measure import Meter
from cachekit.clean.report import CleanReport
from cachekit.clean.request import CleanRequest
from cachekit.system.locks import hold_host

__all__ = ["clean"]


def clean(request: CleanRequest) -> CleanReport:
    """Carry out the stage's rules until every filesystem has what it needs; return what was done.

    Guaranteed: nothing is touched if the goal is met already, or in a dry run; nothing protected is removed; what is in
    use is left alone; a killed run leaves each unit whole, gone, or under a trash name that the next run removes.
    Whether the goal was met is in the report. Raises LockTimeout if another clean runs.
    """
    begin = time.perf_counter()
    report = CleanReport(
        request.stage, request.plan.name, request.plan_why, request.goal, dry_run=request.dry_run
    )
    meter = Meter(request.filesystems, request.needs)
    if meter.met() and not request.dry_run:
        report.already_met = True
    elif request.dry_run:
        _carry_out(request, report, meter)
    else:
        with hold_host("clean", timeout=request.lock_timeout, what="another cachekit clean") as locked:
            if not locked:
                report.warnings.append("no lock file could be made: two cleans may run at once")
            meter.start()  # another clean may have just ended
            _carry_out(request, report, meter)
    report.met = meter.met()
    report.freed = meter.freed()
    report.filesystems = meter.reports()
    if not report.met and not request.dry_run:
        from cachekit.clean.run import largest

        report.consumers = largest(meter)
    report.seconds = time.perf_counter() - begin
    return report


def _carry_out(request: CleanRequest, report: CleanReport, meter: Meter) -> None:
    # Imported when there is something to do: "enough is free" is answered without engines, workers and /proc.
    from cachekit.clean.run import Run

    Run(request, report, meter).carry_out()
