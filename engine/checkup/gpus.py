"""Accelerators: what the drivers show, what the user may open, and whether llama.cpp can use it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lathe.engine.checkup.install import llama_cpp
from lathe.engine.checkup.probe import LlamaFacts
from lathe.engine.estimate import size
from lathe.engine.telemetry.devices import Devices
from lathe.engine.telemetry.files import entries, text
from lathe.engine.telemetry.sample import DeviceSample
from lathe.engine.workbench import Finding

_BACKENDS = {"nvidia": "cuda", "amd": "hip", "intel": "vulkan", "apple": "metal"}
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


def gpus(devices: Devices, facts: LlamaFacts | None, root: Path = Path("/")) -> list[Finding]:
    """Every accelerator, and each gap between having it and using it."""
    rows = devices.read()
    findings = [_device(row) for row in rows]
    findings += _driver_problem(devices, root)
    findings += _unopenable(root)
    findings += _offload(rows, facts)
    if not rows and not findings:
        findings.append(
            Finding(area="gpu", name="accelerator", value="none found: models run on the CPU", level="info")
        )
    return findings


def _device(row: DeviceSample) -> Finding:
    if row.memory_total is None or row.memory_used is None:
        shared = row.id.startswith("apple")
        value = f"{row.name}, {'shares main memory' if shared else 'memory cannot be read'}"
        return Finding(area="gpu", name=row.id, value=value, level="ok" if shared else "info")
    value = f"{row.name}, {size(row.memory_total - row.memory_used)} free of {size(row.memory_total)}"
    return Finding(area="gpu", name=row.id, value=value)


def _driver_problem(devices: Devices, root: Path) -> list[Finding]:
    problem, driver = devices.nvidia.problem, devices.nvidia.driver
    if problem:
        fix = "reboot, or reload the kernel module (`sudo modprobe -r nvidia_uvm nvidia && sudo modprobe nvidia`), "
        fix += "so that driver and library are of one version"
        return [Finding(area="gpu", name="NVIDIA driver", value=problem, level="fail", fix=fix)]
    if driver:
        return [Finding(area="gpu", name="NVIDIA driver", value=driver)]
    present = [card for card in _cards(root) if card == "NVIDIA"] or entries(root / "dev", "nvidia[0-9]*")
    if not present:
        return []
    return [
        Finding(
            area="gpu",
            name="NVIDIA driver",
            value="a card is present, but libnvidia-ml is not",
            level="warn",
            fix="install the NVIDIA driver; in a container, start it with `--gpus all`",
        )
    ]


def _cards(root: Path) -> list[str]:
    vendors = (text(path) for path in entries(root / "sys/class/drm", "card[0-9]*/device/vendor"))
    return [_VENDORS[vendor] for vendor in vendors if vendor in _VENDORS]


def _unopenable(root: Path) -> list[Finding]:
    nodes = [*entries(root / "dev/dri", "renderD*"), *entries(root / "dev", "kfd")]
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if not closed:
        return []
    names = ", ".join(f"/{node.relative_to(root)}" for node in closed)
    return [
        Finding(
            area="gpu",
            name="permission",
            value=f"{names} cannot be opened by this user",
            level="warn",
            fix='sudo usermod -aG render,video "$USER", then log in again',
        )
    ]


def _offload(rows: Iterable[DeviceSample], facts: LlamaFacts | None) -> list[Finding]:
    if facts is None:
        return []
    used = [device for device in facts.devices if device.kind in ("gpu", "igpu")]
    if used:
        names = ", ".join(f"{device.name} ({device.description})" for device in used)
        return [Finding(area="gpu", name="llama.cpp sees", value=names)]
    kinds = {row.id.rstrip("0123456789:") for row in rows}
    # Integrated Intel graphics rarely beat the processor they share memory with.
    wanted = next((kind for kind in ("nvidia", "amd", "apple") if kind in kinds), None)
    if wanted is None:
        return []
    return [
        Finding(
            area="gpu",
            name="llama.cpp sees",
            value="no GPU: this build has no support for it, so models would run on the CPU",
            level="warn",
            fix=llama_cpp(_BACKENDS[wanted]),
        )
    ]
