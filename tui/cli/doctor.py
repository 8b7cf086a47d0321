"""`lathe doctor`: what this machine can do, and how to mend each gap."""

from __future__ import annotations

import os
import shutil
import sys

import click
from lathe.engine.checkup.place import terminal
from lathe.engine.doctor import verdict
from lathe.engine.workbench import Finding, Workbench
from lathe.tui.cli.shell import Shell, put, put_json

_MARKS = {"ok": " ", "info": "i", "warn": "!", "fail": "x"}


@click.command()
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def doctor(shell: Shell, as_json: bool) -> None:
    """Look at hardware, libraries, extras and the workspace; exit 1 with warnings, 2 with failures."""

    async def work(workbench: Workbench) -> list[Finding]:
        return await workbench.doctor()

    columns, lines = shutil.get_terminal_size()
    size = (columns, lines) if sys.stdout.isatty() else None
    findings = [*shell.run(work, as_json=as_json), *terminal(os.environ, size)]
    if as_json:
        put_json(findings)
    else:
        put_findings(findings)
    raise SystemExit(verdict(findings))


def put_findings(findings: list[Finding]) -> None:
    """The report as lines, grouped by area."""
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            put(f"{area}")
        put(f" {_MARKS.get(finding.level, '?')} {finding.name:<26} {finding.value}")
        if finding.fix and finding.level != "ok":
            put(f"   {'':<26} -> {finding.fix}")
