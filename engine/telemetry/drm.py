"""Memory per process on devices whose driver keeps the kernel's DRM client statistics (amdgpu, i915, xe).

Source: the kernel's documentation of drm-usage-stats: `/proc/PID/fdinfo/FD` of an open `/dev/dri` node holds
`drm-pdev`, `drm-client-id` and `drm-resident-<region>` (older: `drm-memory-<region>`). Invariant: only the processes
that are asked about are looked at, and a client with several descriptors counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from lathe.engine.telemetry.files import entries, text

_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def device_memory(pids: Iterable[int], root: Path = Path("/")) -> dict[str, dict[int, int]]:
    """Bytes of device memory by PCI address and process."""
    used: dict[str, dict[int, int]] = defaultdict(dict)
    for pid in pids:
        for (address, _client), amount in _clients(root / "proc" / str(pid)).items():
            used[address][pid] = used[address].get(pid, 0) + amount
    return dict(used)


def pci_address(device: Path) -> str | None:
    """The PCI address of a `/sys/class/drm/cardN/device` folder."""
    for line in (text(device / "uevent") or "").splitlines():
        if line.startswith("PCI_SLOT_NAME="):
            return line.partition("=")[2]
    return None


def _clients(process: Path) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for link in entries(process / "fd", "*"):
        try:
            if not str(link.readlink()).startswith("/dev/dri/"):
                continue
        except OSError:
            continue
        fields = dict(_fields(text(process / "fdinfo" / link.name) or ""))
        address, client = fields.get("drm-pdev"), fields.get("drm-client-id")
        if address and client:
            found[address, client] = _memory(fields)
    return found


def _fields(content: str) -> Iterable[tuple[str, str]]:
    for line in content.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def _memory(fields: dict[str, str]) -> int:
    for prefix in ("drm-resident-vram", "drm-memory-vram"):
        regions = [value for name, value in fields.items() if name.startswith(prefix)]
        if regions:
            return sum(map(_bytes, regions))
    return 0


def _bytes(value: str) -> int:
    amount, _, unit = value.partition(" ")
    return int(amount) * _UNITS.get(unit.strip(), 1) if amount.isdigit() else 0
