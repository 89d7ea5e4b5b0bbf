"""One run over the rules of a stage: survey, carry out, measure, judge."""

from __future__ import annotations

import os
import time

from cachekit.clean.commands import run_command, survey_command
from cachekit.clean.decide import unwanted
from cachekit.clean.docker.rules import DockerSurroundings, carry_out, survey
from cachekit.clean.keeps import job_files
from cachekit.clean.ledger import Ledger, cheapest_first
from cachekit.clean.measure import Meter
from cachekit.clean.model import Command, Docker, Done, Found, Paths, Rule
from cachekit.clean.remove import finish_leftovers, remove_units
from cachekit.clean.report import CleanReport, Consumer, RuleReport
from cachekit.clean.request import CleanRequest
from cachekit.clean.survey import Surroundings, survey_paths
from cachekit.disk.reserve import ballasts, release
from cachekit.disk.usage import usage
from cachekit.errors import CachekitError
from cachekit.model import format_size
from cachekit.system.clock import now_ns
from cachekit.system.holders import Holders
from cachekit.system.workers import worker_count

__all__ = ["Run", "largest"]

#: A look at /proc is good for so long; before something is removed for good there is always a new one.
_HOLDERS_SECONDS = 2.0
#: Finding the largest directories that remain must not take long: the answer is wanted now.
_CONSUMER_SECONDS = 5.0
_CONSUMERS = 8
#: So long a rule waits for a package manager that is at work; then another rule may free what is needed.
_PATIENCE = 30.0


class Run:
    """One run: what it has learned on its way."""

    def __init__(self, request: CleanRequest, report: CleanReport, meter: Meter) -> None:
        self._request = request
        self._report = report
        self._meter = meter
        self._ledger = Ledger.load()
        self._holders: Holders | None = None
        self._looked = 0.0
        self._around = Surroundings(
            request.environment.variables,
            request.protection,
            now_ns(),
            request.environment.workspace,
            self.holders,
            request.environment.runner_roots,
            devices=meter.short_devices() or None,
            measure=self._size if request.dry_run else None,
            patience=0.0
            if request.dry_run or request.stage == "emergency"
            else min(_PATIENCE, request.lock_timeout),
        )
        self._docker = DockerSurroundings(
            now_ns=now_ns(),
            keep_images=tuple(request.keep_images),
            protected_images=request.protected_images,
            dry_run=request.dry_run,
        )
        #: In a dry run: bytes that the rules so far would have freed.
        self._foreseen = 0
        #: What was done about the trash of killed runs, and what of it stays.
        self._trash: RuleReport | None = None
        self._trash_left: list[tuple[bytes, str]] = []

    def holders(self) -> Holders:
        """Return who uses what, not older than two seconds."""
        now = time.monotonic()
        if self._holders is None or now - self._looked > _HOLDERS_SECONDS:
            self._holders, self._looked = Holders.scan(), now
        return self._holders

    def _size(self, path: bytes) -> int:
        try:
            return usage(path, workers=worker_count()).size
        except OSError:
            return 0

    def carry_out(self) -> None:
        """Go through the rules."""
        request, meter = self._request, self._meter
        if request.stage == "emergency":
            self._release_ballast()
        self._leftovers([])
        texts = job_files(request.environment.workspace, request.environ)
        for rule in cheapest_first(request.plan.name, request.plan.of_stage(request.stage), self._ledger):
            expected = self._ledger.expect(request.plan.name, rule)
            outcome = RuleReport(
                rule.id,
                rule.category,
                rule.title,
                "not-needed",
                expected=expected.size,
                measured=expected.measured,
            )
            self._report.rules.append(outcome)
            no = unwanted(
                rule,
                request.environment,
                keep=request.keep,
                job_texts=texts,
                rooms=meter.short_rooms(),
                part=request.part,
            )
            if no is not None:
                outcome.result, outcome.reason = no
            elif self._report.waiting:
                outcome.result, outcome.reason = "skipped", "waiting for the filesystem"
            elif self._enough() and not request.dry_run:
                outcome.reason = "enough is free without it"
            else:
                if request.started is not None:
                    request.started(rule)
                self._one(rule, outcome)
            if request.finished is not None:
                request.finished(outcome)
        if not request.dry_run:
            self._ledger.save()

    def _enough(self) -> bool:
        return self._meter.met(self._foreseen)

    def _one(self, rule: Rule, outcome: RuleReport) -> None:
        begin = time.monotonic()
        # What is on a filesystem that has enough by now stays.
        self._around.devices = self._meter.short_devices() or None
        try:
            found = self._survey(rule)
            outcome.leave(found.left)
            self._leftovers(sorted(self._around.visited))
            if found.state != "ready":
                outcome.result, outcome.reason = found.state, found.reason
            elif self._request.dry_run:
                self._foresee(found, outcome)
            else:
                self._act(rule, found, outcome)
        except (OSError, CachekitError) as error:
            # One rule's trouble must not keep the others from freeing what is needed.
            outcome.result, outcome.reason = "failed", str(error)
        outcome.seconds = time.monotonic() - begin

    def _survey(self, rule: Rule) -> Found:
        if isinstance(rule.target, Paths):
            return survey_paths(rule, self._around)
        if isinstance(rule.target, Command):
            return survey_command(rule, self._around)
        return survey(rule, self._docker)

    def _foresee(self, found: Found, outcome: RuleReport) -> None:
        reached = not self._enough()
        outcome.result = "would-free" if reached else "not-needed"
        outcome.items = len(found.units)
        if found.size is not None:
            outcome.expected, outcome.measured = found.size, True
        if reached:
            self._foreseen += outcome.expected

    def _act(self, rule: Rule, found: Found, outcome: RuleReport) -> None:
        meter = self._meter
        before = meter.used()
        if isinstance(rule.target, Paths):
            done = remove_units(
                found.units,
                enough=meter.watch(before, found.paths),
                missing=meter.missing,
                known=self.holders,
                holders=self._fresh_holders,
            )
        elif isinstance(rule.target, Docker):
            done = carry_out(rule, found, self._docker, meter.met_now, None)
        else:
            done = run_command(rule)
        # An image's size counts layers that others share: only what was looked at file by file can be waited for.
        known = done.size if isinstance(rule.target, Paths) else None
        seen = meter.settle(before, known, found.paths)
        outcome.freed = before - meter.used()
        outcome.removed, outcome.items = done.size, done.items
        outcome.leave(done.left)
        self._judge(done, outcome, unseen=meter.unseen(before, known) if known else 0, seen=seen)
        if isinstance(rule.target, Command) and outcome.result == "freed" and outcome.freed <= 0:
            outcome.result, outcome.reason = "stale", "it ran, and nothing became free"
        # A rule that ends with more used than before it has not freed a negative amount: others wrote.
        meter.credit(max(0, outcome.freed), found.paths)
        if outcome.result in {"freed", "deferred", "stale"}:
            self._ledger.note(self._request.plan.name, rule, outcome.freed, max(done.seconds, 0.001))

    def _fresh_holders(self) -> Holders:
        self._holders, self._looked = Holders.scan(), time.monotonic()
        return self._holders

    def _judge(self, done: Done, outcome: RuleReport, *, unseen: int, seen: bool) -> None:
        if done.problem:
            outcome.result, outcome.reason = "failed", done.problem
        elif not done.items and done.left:
            path, reason = done.left[0]
            outcome.result, outcome.reason = "blocked", f"{path.decode('utf-8', 'surrogateescape')}: {reason}"
        elif unseen and self._meter.open_deleted(self._fresh_holders()) >= unseen // 2:
            outcome.result, outcome.reason = "deferred", "removed, but processes still have the files open"
        elif seen:
            outcome.result = "freed" if outcome.freed > 0 or done.items else "stale"
            outcome.reason = f"{len(done.left)} left" if done.left else ""
        else:
            outcome.result, outcome.reason = "freed", "not all of it is shown as free yet"
            self._report.waiting = (
                f"waiting for the filesystem: it does not show {format_size(self._meter.owed)} that were removed "
                "(snapshots, shared blocks or another writer can hold them)"
            )

    def _release_ballast(self) -> None:
        for ballast in ballasts(self._request.ballast_directories):
            if ballast.device not in self._meter.short_devices():
                continue
            outcome = RuleReport("ballast", "temp", "The reserve made by cachekit disk reserve", "would-free")
            outcome.expected, outcome.measured, outcome.items = ballast.size, True, 1
            self._report.rules.append(outcome)
            if self._request.dry_run:
                self._foreseen += ballast.size
                continue
            before = self._meter.used()
            place = [ballast.path.encode("utf-8", "surrogateescape")]
            try:
                release(ballast)
                outcome.result, outcome.removed = "freed", ballast.size
                self._meter.settle(before, ballast.size, place)
            except OSError as error:
                outcome.result, outcome.reason = "blocked", f"{ballast.path}: {error.strerror}"
            outcome.freed = before - self._meter.used()
            self._meter.credit(outcome.freed, place)

    def _leftovers(self, parents: list[bytes]) -> None:
        """Remove what a killed run had renamed and not removed."""
        if self._request.dry_run:
            return
        begin, before = time.monotonic(), self._meter.used()
        done = finish_leftovers(parents, holders=self._fresh_holders)
        self._around.visited.clear()
        told = {path for path, _ in self._trash_left}
        new = [(path, reason) for path, reason in done.left if path not in told]
        if not done.items and not new:
            return
        self._trash_left += new
        self._meter.settle(before, done.size, [item.path for item in self._request.filesystems])
        outcome = self._trash
        if outcome is None:
            outcome = RuleReport("trash", "temp", "What a clean that was killed left half removed", "freed")
            self._report.rules.append(outcome)
            self._trash = outcome
        outcome.items += done.items
        outcome.removed = (outcome.removed or 0) + (done.size or 0)
        freed = before - self._meter.used()
        outcome.freed += freed
        outcome.seconds += time.monotonic() - begin
        outcome.leave(new)
        if not outcome.items:
            path, reason = self._trash_left[0]
            outcome.result, outcome.reason = "blocked", f"{os.fsdecode(path)}: {reason}"
        else:
            outcome.result, outcome.reason = (
                "freed",
                f"{outcome.left_count} left" if outcome.left_count else "",
            )
        self._meter.credit(freed, [])


def largest(meter: Meter) -> list[Consumer]:
    """Return the largest directories on the filesystems that are short, as far as can be found in five seconds."""
    deadline = time.monotonic() + _CONSUMER_SECONDS
    found: list[Consumer] = []
    for filesystem in meter.short():
        try:
            facts = usage(filesystem.mount, workers=worker_count(), deadline=deadline)
        except OSError:
            continue
        found += [Consumer(item.path, item.size, item.files) for item in facts.top(_CONSUMERS)]
    return sorted(found, key=lambda item: -item.size)[:_CONSUMERS]
