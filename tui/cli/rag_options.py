"""What the verbs of `lathe rag` share: options, and how outcomes are shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from lathe.engine.jobs.values import Job
from lathe.store.rag.values import Filter
from lathe.tui.cli.shell import put

MODES = click.Choice(["hybrid", "dense", "bm25"])
as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
detach_option = click.option("--detach", is_flag=True, help="Leave the job to the engine; print its id.")
_FILTERS = (
    click.option("--path", "paths", multiple=True, metavar="GLOB", help="Only documents whose path matches."),
    click.option("--partition", "partitions", multiple=True, metavar="NAME"),
    click.option("--type", "media_types", multiple=True, metavar="TYPE", help="Such as application/pdf."),
    click.option("--language", "languages", multiple=True, metavar="CODE", help="Such as en."),
    click.option("--meta", multiple=True, metavar="KEY=VALUE", help="What a document says about itself."),
    click.option("--without", multiple=True, metavar="FINDING", help="Not passages with it, such as injection."),
)


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options that narrow a search; they arrive as one `condition`."""

    @wraps(command)
    def wrapped(
        *, paths: tuple[str, ...], partitions: tuple[str, ...], media_types: tuple[str, ...],
        languages: tuple[str, ...], meta: tuple[str, ...], without: tuple[str, ...], **rest: Any,
    ) -> None:  # fmt: skip
        pairs = [item.partition("=") for item in meta]
        if any(not key or not equals for key, equals, _ in pairs):
            raise click.UsageError("--meta: give KEY=VALUE")
        condition = Filter(
            paths=paths, partitions=partitions, media_types=media_types, languages=languages, without_flags=without,
            metadata={key: value for key, _, value in pairs},
        )  # fmt: skip
        command(condition=condition, **rest)

    for option in reversed(_FILTERS):
        wrapped = option(wrapped)
    return wrapped


def show_figures(job: Job) -> None:
    """A line for each figure of a job."""
    for name, value in (job.outcome.figures if job.outcome else {}).items():
        if value is not None:
            put(f"  {name:<20} {value:.6g}" if isinstance(value, float) else f"  {name:<20} {value}")
