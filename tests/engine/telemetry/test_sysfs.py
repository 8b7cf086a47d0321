"""AMD, Intel, RAPL, control groups and DRM clients, read from trees as the kernel documents them."""

from __future__ import annotations

from pathlib import Path

import psutil
from lathe.engine.telemetry.amd import AmdReader
from lathe.engine.telemetry.apple import AppleReader
from lathe.engine.telemetry.host import PackagePower
from lathe.engine.telemetry.intel import IntelReader
from lathe.engine.telemetry.memory import read_memory
from lathe.engine.telemetry.sample import DeviceSample

GIB = 1024**3


def plant(root: Path, files: dict[str, object]) -> None:
    """Write a tree of small files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def client(root: Path, pid: int, descriptor: int, address: str, number: int, fields: str) -> None:
    """Give a process an open DRM node."""
    folder = root / f"proc/{pid}"
    (folder / "fd").mkdir(parents=True, exist_ok=True)
    (folder / "fd" / str(descriptor)).symlink_to("/dev/dri/renderD128")
    plant(folder, {f"fdinfo/{descriptor}": f"drm-pdev:\t{address}\ndrm-client-id:\t{number}\n{fields}"})


AMD = "sys/class/drm/card1/device"


def test_an_amd_card(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            f"{AMD}/vendor": "0x1002",
            f"{AMD}/product_name": "AMD Radeon PRO W7900",
            f"{AMD}/uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0",
            f"{AMD}/mem_info_vram_total": 48 * GIB,
            f"{AMD}/mem_info_vram_used": GIB,
            f"{AMD}/gpu_busy_percent": 37,
            f"{AMD}/hwmon/hwmon3/temp1_input": 45000,
            f"{AMD}/hwmon/hwmon3/power1_average": 61_000_000,
            f"{AMD}/hwmon/hwmon3/power1_cap": 241_000_000,
            f"{AMD}/hwmon/hwmon3/freq1_input": 2_100_000_000,
            f"{AMD}/hwmon/hwmon3/freq2_input": 1_124_000_000,
            f"{AMD}/drm/renderD128/dev": "226:128",
            "sys/class/kfd/kfd/topology/nodes/0/gpu_id": 0,
            "sys/class/kfd/kfd/topology/nodes/1/gpu_id": 9001,
            "sys/class/kfd/kfd/topology/nodes/1/properties": "simd_count 192\ndrm_render_minor 128",
            "sys/class/kfd/kfd/proc/77/vram_9001": 5 * GIB,
        },
    )
    client(tmp_path, 78, 5, "0000:03:00.0", 1, "drm-memory-vram:\t2048 KiB")
    client(tmp_path, 78, 6, "0000:03:00.0", 1, "drm-memory-vram:\t2048 KiB")  # the same client, duplicated
    (row,) = AmdReader(tmp_path).read([77, 78, 79])
    assert row == DeviceSample(
        id="amd0",
        name="AMD Radeon PRO W7900",
        memory_used=GIB,
        memory_total=48 * GIB,
        utilization=0.37,
        temperature_c=45,
        power_w=61,
        power_limit_w=241,
        clock_mhz=2100,
        memory_clock_mhz=1124,
        processes={77: 5 * GIB, 78: 2 * 1024**2},
    )


def test_an_amd_card_with_nothing_but_memory(tmp_path: Path) -> None:
    plant(tmp_path, {f"{AMD}/vendor": "0x1002", f"{AMD}/device": "0x15bf", f"{AMD}/mem_info_vram_total": GIB})
    plant(tmp_path, {f"{AMD}/gpu_busy_percent": "garbage"})
    assert AmdReader(tmp_path).read() == (DeviceSample(id="amd0", name="AMD 0x15bf", memory_total=GIB),)


def test_an_intel_card_of_each_driver(tmp_path: Path) -> None:
    old, new = "sys/class/drm/card0", "sys/class/drm/card1"
    plant(
        tmp_path,
        {
            f"{old}/device/vendor": "0x8086",
            f"{old}/device/device": "0x46a6",
            f"{old}/gt_act_freq_mhz": 1300,
            f"{new}/device/vendor": "0x8086",
            f"{new}/device/device": "0x56a0",
            f"{new}/device/uevent": "PCI_SLOT_NAME=0000:0a:00.0",
            f"{new}/device/tile0/physical_vram_size_bytes": 16 * GIB,
            f"{new}/device/tile0/gt0/freq0/act_freq": 2400,
            f"{new}/device/hwmon/hwmon4/temp2_input": 61000,
            f"{new}/device/hwmon/hwmon4/power1_max": 190_000_000,
            f"{new}/device/hwmon/hwmon4/energy1_input": 1_000_000,
        },
    )
    client(tmp_path, 9, 3, "0000:0a:00.0", 4, "drm-total-vram0:\t9 MiB\ndrm-resident-vram0:\t3 MiB")
    reader = IntelReader(tmp_path)
    integrated, discrete = reader.read([9])
    assert integrated == DeviceSample(id="intel0", name="Intel 0x46a6", clock_mhz=1300)
    assert discrete == DeviceSample(
        id="intel1",
        name="Intel 0x56a0",
        memory_total=16 * GIB,
        temperature_c=61,
        power_limit_w=190,
        clock_mhz=2400,
        processes={9: 3 * 1024**2},
    )
    plant(tmp_path, {f"{new}/device/hwmon/hwmon4/energy1_input": 2_000_000})
    power = reader.read([9])[1].power_w
    assert power is not None and power > 0


def test_nothing_there_is_nothing_read(tmp_path: Path) -> None:
    assert AmdReader(tmp_path).read([1]) == () == IntelReader(tmp_path).read([1])
    assert PackagePower(tmp_path).read(1.0) is None


def test_package_power_sums_sockets_and_survives_the_wrap(tmp_path: Path) -> None:
    zones = "sys/class/powercap/intel-rapl:"
    for zone, name in (("0", "package-0"), ("1", "package-1"), ("0:0", "core"), ("2", "psys")):
        files = {"name": name, "energy_uj": 900_000_000, "max_energy_range_uj": 1_000_000_000}
        plant(tmp_path, {f"{zones}{zone}/{key}": value for key, value in files.items()})
    power = PackagePower(tmp_path)
    assert power.read(10.0) is None
    plant(tmp_path, {f"{zones}0/energy_uj": 950_000_000, f"{zones}1/energy_uj": 50_000_000})
    assert power.read(20.0) == (50 + 150) / 10


def test_unreadable_energy_is_unknown_power(tmp_path: Path) -> None:
    plant(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
    power = PackagePower(tmp_path)
    assert power.read(1.0) is None is power.read(2.0)


def test_a_control_group_limits_the_memory(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/system.slice/lathe.service"
    plant(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/lathe.service",
            f"{group}/memory.max": "max",
            f"{group}/memory.current": GIB,
            "sys/fs/cgroup/system.slice/memory.max": 2 * GIB,
            "sys/fs/cgroup/system.slice/memory.current": GIB,
            "sys/fs/cgroup/system.slice/memory.stat": f"anon 5\ninactive_file {GIB // 4}",
        },
    )
    memory = read_memory(tmp_path)
    assert memory.total == 2 * GIB
    assert memory.available == GIB + GIB // 4


def test_the_older_control_groups_too(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 1,
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": GIB,
            "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": GIB // 2,
        },
    )
    memory = read_memory(tmp_path)
    assert (memory.total, memory.available) == (GIB, GIB // 2)


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    assert read_memory(tmp_path).total == psutil.virtual_memory().total


def test_apple_chips_are_named_and_nothing_is_invented() -> None:
    reader = AppleReader({"machdep.cpu.brand_string": "Apple M4 Pro"}.get, "Darwin", "arm64")
    assert reader.read() == (DeviceSample(id="apple0", name="Apple M4 Pro"),)
    assert AppleReader(lambda name: "x", "Linux", "aarch64").read() == ()
