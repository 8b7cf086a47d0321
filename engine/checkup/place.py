"""Where Lathe runs: the workspace's folder, the network policy, and the terminal of whoever asks."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lathe.engine.paths import Home
from lathe.engine.telemetry.files import text
from lathe.engine.workbench import Finding

_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "lustre", "ceph", "glusterfs"}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_HUB_POLICY = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def workspace(home: Home, root: Path = Path("/")) -> list[Finding]:
    """Whether the workspace can be written, is private where it must be, and lies on a file system that locks."""
    place = Finding(area="workspace", name="folder", value=str(home.root))
    return [place, *_writable(home), *_private(home), *_file_system(home, root)]


def converter(home: Home) -> list[Finding]:
    """Whether llama.cpp's own converter is at hand, for architectures that Lathe's does not know."""
    from lathe.engine.toolchain import store

    versions = [one.version for one in store.listed(home.toolchain)]
    if versions:
        return [Finding(area="convert", name="llama.cpp's own", value=f"{', '.join(versions)} installed")]
    value = "not installed: only the architectures that Lathe's converter knows become GGUF"
    fix = "lathe toolchain install --from FILE, or from the registry with general.offline=false"
    return [Finding(area="convert", name="llama.cpp's own", value=value, level="info", fix=fix)]


def network(offline: bool, environment: Mapping[str, str]) -> list[Finding]:
    """The policy; nothing is tried."""
    policy = "offline: nothing leaves this machine" if offline else "online: downloads are allowed when asked for"
    findings = [Finding(area="network", name="policy", value=policy)]
    hub = {name: environment[name] for name in _HUB_POLICY if name in environment}
    if hub:
        value = " ".join(f"{name}={value}" for name, value in hub.items())
        contradicts = not offline and any(value.lower() in ("1", "true", "yes", "on") for value in hub.values())
        fix = f"unset {' '.join(hub)}" if contradicts else ""
        findings.append(
            Finding(area="network", name="hub", value=value, level="warn" if contradicts else "ok", fix=fix)
        )
    proxies = [name for name in _PROXIES if environment.get(name) or environment.get(name.lower())]
    if proxies:
        value = f"{', '.join(proxies)} set; workers and jobs run without it"
        findings.append(Finding(area="network", name="proxy", value=value, level="info"))
    return findings


def terminal(environment: Mapping[str, str], size: tuple[int, int] | None) -> list[Finding]:
    """The terminal of the front that asks: the engine has none. `size` is columns and lines; None: not a terminal."""
    kind = environment.get("TERM", "")
    level, fix = "ok", ""
    if size is not None and kind in ("", "dumb", "unknown"):
        level, fix = "warn", "export TERM=xterm-256color (inside tmux: tmux-256color)"
    findings = [Finding(area="terminal", name="TERM", value=kind or "unset", level=level, fix=fix)]
    locale = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG") or ""
    unicode = "utf-8" in locale.lower() or "utf8" in locale.lower()
    findings.append(
        Finding(
            area="terminal",
            name="locale",
            value=locale or "unset",
            level="ok" if unicode else "warn",
            fix="" if unicode else "export LANG=C.UTF-8",
        )
    )
    findings.append(Finding(area="terminal", name="colours", value=_colours(environment, kind), level="info"))
    if size is not None:
        small = size[0] < 80 or size[1] < 24
        fix = "enlarge the window to at least 80 columns by 24 lines" if small else ""
        value = f"{size[0]} columns, {size[1]} lines"
        findings.append(Finding(area="terminal", name="size", value=value, level="warn" if small else "ok", fix=fix))
    return findings


def _colours(environment: Mapping[str, str], kind: str) -> str:
    if environment.get("NO_COLOR"):
        return "none: NO_COLOR is set"
    if environment.get("COLORTERM") in ("truecolor", "24bit"):
        return "16 million"
    return "256" if "256" in kind else "16, or unknown"


def _writable(home: Home) -> list[Finding]:
    folder = home.root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        value = f"{folder} cannot be written: {error.strerror or error}"
        fix = f"chown -R {os.getuid()} {shlex.quote(str(folder))}, or set LATHE_HOME to a folder of yours"
        return [Finding(area="workspace", name="permission", value=value, level="fail", fix=fix)]


def _private(home: Home) -> list[Finding]:
    findings = []
    for folder in (home.private, home.socket.parent):
        try:
            mode = folder.stat().st_mode & 0o777
        except OSError:
            continue
        if mode & 0o077:
            value = f"{folder} is open to others (mode {mode:o}): it holds the engine's socket"
            fix = f"chmod 700 {shlex.quote(str(folder))}"
            findings.append(Finding(area="workspace", name="privacy", value=value, level="fail", fix=fix))
    return findings[:1]


def _file_system(home: Home, root: Path) -> list[Finding]:
    """SQLite's locks cannot be trusted on network file systems."""
    best, kind = "", ""
    for line in (text(root / "proc/self/mounts") or "").splitlines():
        fields = line.split(" ")
        if len(fields) >= 3:
            point = fields[1].encode().decode("unicode_escape")
            if home.root.is_relative_to(point) and len(point) > len(best):
                best, kind = point, fields[2]
    if kind not in _NETWORK_FILE_SYSTEMS:
        return []
    value = f"{best} is a network file system ({kind}): its locks cannot be trusted, and models load slowly"
    fix = "set LATHE_HOME to a folder on a local disk"
    return [Finding(area="workspace", name="file system", value=value, level="warn", fix=fix)]
