"""Commands that run another one: their own failures have codes that the other one hardly uses."""

from __future__ import annotations

from typing import Any

import click

from cachekit.errors import CachekitError, NotRun, RefusedToRun

__all__ = ["Running"]


class Running(click.Command):
    """A command that runs another one: every failure of its own ends with one of NotRun's codes, also wrong usage."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = (
            "--json" in args[: args.index("--") if "--" in args else len(args)]
        )  # parsing empties the list
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if parent is not None and as_json:
                parent.find_root().ensure_object(dict)["json"] = True
            raise _usage(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _usage(error) from None
        except (click.ClickException, click.exceptions.Exit):
            raise
        except CachekitError as error:
            if error.exit_code >= RefusedToRun.exit_code:
                raise
            raise NotRun(
                error.message,
                path=error.path,
                expected=error.expected,
                found=error.found,
                hint=error.hint,
                **error.fields,
            ) from None
        except Exception as error:
            raise NotRun(
                f"internal error: {type(error).__name__}: {error}",
                hint="this is a bug in cachekit, or the machine fails. Run it again with --debug and report it",
            ) from error


def _usage(error: click.UsageError) -> NotRun:
    path = error.ctx.command_path if error.ctx is not None else "cachekit lock run"
    return NotRun(
        error.format_message().rstrip(".").replace("\n", " "),
        hint=f"{path} --help shows the options and examples",
    )
