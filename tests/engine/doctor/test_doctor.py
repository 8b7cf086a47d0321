"""The doctor: complete on any machine, exact in its fixes, unharmed by what it examines."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from lathe.engine import doctor
from lathe.engine.checkup import gpus, install, libraries, machine, place, probe
from lathe.engine.checkup.probe import LlamaDevice, LlamaFacts
from lathe.engine.errors import Failure
from lathe.engine.paths import Home
from lathe.engine.process import Child, spawn
from lathe.engine.telemetry.devices import Devices
from lathe.engine.telemetry.nvidia import NvidiaReader
from lathe.engine.workbench import Finding
from lathe.store import driver
from support.fake_nvml import FakeNvml, h100

TESTS = str(Path(__file__).resolve().parents[2])
FACTS = LlamaFacts(version="0.3.36", ggml="0.25.3", commit="abc", features=("AVX2", "FMA"), offload=False, devices=())


def level(findings: list[Finding], name: str) -> str:
    (found,) = [finding for finding in findings if finding.name == name]
    return found.level


def one(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


@pytest.mark.native
async def test_this_machine_is_examined_in_full(home: Path) -> None:
    before = set(sys.modules)
    findings = await doctor.examine(Home(home).create())
    areas = {finding.area for finding in findings}
    assert areas >= {
        "cpu", "memory", "gpu", "disk", "llama.cpp", "sqlite", "extras", "network", "workspace", "convert",
    }  # fmt: skip
    assert "not installed" in next(finding.value for finding in findings if finding.area == "convert")
    assert not [finding for finding in findings if finding.name == "examination"]
    library = next(finding for finding in findings if finding.name == "library" and finding.area == "llama.cpp")
    assert library.level == "ok" and metadata.version("llama-cpp-python") in library.value
    assert not [name for name in set(sys.modules) - before if name.startswith("llama_cpp")]
    assert all(finding.fix for finding in findings if finding.level in ("warn", "fail"))


async def test_one_examination_that_fails_does_not_end_the_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_facts(folder: Path) -> Failure:
        return Failure("E_ENGINE_CRASH", "llama.cpp crashed (illegal instruction)")

    def broken(*_: object) -> list[Finding]:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(doctor, "llama_facts", no_facts)
    monkeypatch.setattr(machine, "disk", broken)
    findings = await doctor.examine(Home(home))
    disk = one([finding for finding in findings if finding.area == "disk"])
    assert "the disk is on fire" in disk.value and disk.level == "warn"
    assert level([finding for finding in findings if finding.area == "llama.cpp"], "library") == "fail"
    assert doctor.verdict(findings) == 2


async def test_a_library_that_kills_its_process_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def doomed(module: str, *, role: str, log_path: Path) -> Child:
        return await spawn(
            "support.scripted_child", role=role, log_path=log_path, extra_args=["segfault"], env={"PYTHONPATH": TESTS}
        )

    monkeypatch.setattr(probe, "spawn", doomed)
    answer = await probe.llama_facts(tmp_path)
    assert isinstance(answer, Failure) and "segmentation fault" in answer.message
    finding = libraries.llama(answer)[0]
    assert finding.level == "fail" and "llama-cpp-python" in finding.fix


def test_the_exit_code_is_the_worst_level() -> None:
    def findings(*levels: str) -> list[Finding]:
        return [Finding(area="cpu", name="x", value="y", level=each) for each in levels]

    assert doctor.verdict(findings("ok", "info")) == 0
    assert doctor.verdict(findings("ok", "warn", "info")) == 1
    assert doctor.verdict(findings("warn", "fail")) == 2
    assert doctor.verdict([]) == 0


# -- llama.cpp -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("ggml", "expected"), [("0.9.6", "warn"), ("0.10.0", "ok"), ("0.25.3", "ok"), ("?", "warn")])
def test_an_old_build_is_told_from_a_safe_one(ggml: str, expected: str) -> None:
    facts = LlamaFacts(version="0", ggml=ggml, commit="x", features=(), offload=False, devices=())
    assert libraries.llama(facts)[0].level == expected


def test_a_shipped_rpc_backend_is_named(tmp_path: Path) -> None:
    assert libraries.rpc(tmp_path) == []
    (tmp_path / "lib dir").mkdir()
    shipped = tmp_path / "lib dir" / "libggml-rpc.so"
    shipped.touch()
    finding = one(libraries.rpc(tmp_path))
    assert finding.level == "warn" and shlex.split(finding.fix) == ["rm", str(shipped)]


def cpu(root: Path, flags: str) -> Path:
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text(f"model name\t: Toy 9000\nflags\t\t: {flags}\n")
    return root


def test_a_build_that_leaves_the_processor_idle(tmp_path: Path) -> None:
    root = cpu(tmp_path, "sse avx2 fma avx512f")
    assert machine.build_for_processor(("AVX2", "AVX512"), root).level == "ok"
    assert machine.build_for_processor(("AVX2",), root).level == "info"
    without = machine.build_for_processor((), root)
    assert without.level == "warn" and "GGML_NATIVE" in without.fix and "AVX2" in without.value


def test_a_processor_without_vectors_is_warned_of(tmp_path: Path) -> None:
    assert level(machine.processor(cpu(tmp_path, "sse")), "instructions") == "warn"
    found = machine.processor(cpu(tmp_path, "avx2"))
    assert level(found, "instructions") == "ok" and found[0].value.startswith("Toy 9000")


def test_tiles_that_lie_are_named(tmp_path: Path) -> None:
    root = cpu(tmp_path, "avx2 amx_int8")
    assert machine.tiles(lambda: True, root)[0].level == "ok"
    assert "does not use them" in machine.tiles(lambda: False, root)[0].value
    assert machine.tiles(lambda: False, cpu(tmp_path, "avx2")) == []


# -- GPUs ------------------------------------------------------------------------------------------------------------
def with_gpu(root: Path, fake: FakeNvml | None = None) -> Devices:
    return Devices(nvidia=NvidiaReader(lambda: fake or FakeNvml(h100())), root=root)


def test_a_gpu_that_the_build_cannot_use(tmp_path: Path) -> None:
    findings = gpus.gpus(with_gpu(tmp_path), FACTS, tmp_path)
    assert level(findings, "nvidia0") == "ok"
    gap = next(finding for finding in findings if finding.name == "llama.cpp sees")
    assert gap.level == "warn" and 'CMAKE_ARGS="-DGGML_CUDA=on"' in gap.fix


def test_a_gpu_that_the_build_can_use(tmp_path: Path) -> None:
    device = LlamaDevice("CUDA0", "NVIDIA H100", "gpu", "CUDA")
    facts = LlamaFacts(version="0", ggml="0.25", commit="x", features=(), offload=True, devices=(device,))
    assert level(gpus.gpus(with_gpu(tmp_path), facts, tmp_path), "llama.cpp sees") == "ok"


def test_a_driver_that_does_not_match_its_library(tmp_path: Path) -> None:
    fake = FakeNvml(h100())
    fake.fault = FakeNvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    assert level(gpus.gpus(with_gpu(tmp_path, fake), FACTS, tmp_path), "NVIDIA driver") == "fail"


def absent() -> FakeNvml:
    class NVMLError_LibraryNotFound(Exception):
        pass

    raise NVMLError_LibraryNotFound


def test_a_card_without_a_driver_and_no_card_at_all(tmp_path: Path) -> None:
    none = Devices(nvidia=NvidiaReader(absent), root=tmp_path)
    nothing = one(gpus.gpus(none, FACTS, tmp_path))
    assert nothing.level == "info" and "CPU" in nothing.value
    vendor = tmp_path / "sys/class/drm/card0/device/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x10de\n")
    assert level(gpus.gpus(none, FACTS, tmp_path), "NVIDIA driver") == "warn"


# -- libraries -------------------------------------------------------------------------------------------------------
def test_two_onnx_runtimes_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}
    monkeypatch.setattr(libraries, "version_of", installed.get)
    finding = one(libraries.runtimes())
    assert finding.level == "fail"
    assert "uninstall -y onnxruntime onnxruntime-gpu" in finding.fix and finding.fix.endswith("onnxruntime-gpu")
    del installed["onnxruntime"]
    assert one(libraries.runtimes()).level == "ok"


def test_a_missing_extra_comes_with_both_ways_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "version_of", lambda name: None)
    onnx = next(finding for finding in libraries.extras() if finding.name == "onnx")
    assert onnx.level == "info" and "optimum-onnx" in onnx.value
    assert "install 'lathe-llm[onnx]'" in onnx.fix and "--no-index --find-links wheels" in onnx.fix


def test_pip_commands_are_for_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shlex.split(install.pip("install", "a>1"))[0] == sys.executable
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    words = shlex.split(install.pip("install", "a>1"))
    assert words == ["uv", "pip", "install", "--python", sys.executable, "a>1"]


def test_pip_commands_parse() -> None:
    command = install.pip("install", "--dry-run", "--no-index", "--no-deps", "no-such-distribution-of-ours")
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    assert "No matching distribution found for no-such-distribution-of-ours" in done.stderr


def test_an_old_sqlite_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    known = driver.Capabilities(driver="sqlite3", version="3.40.1", extensions=False, fts5=True, wal_safe=False)
    monkeypatch.setattr(driver, "capabilities", lambda: known)
    findings = libraries.sqlite()
    assert level(findings, "library") == "warn" and level(findings, "sqlite-vec") == "warn"
    assert all("pysqlite3" in finding.fix for finding in findings)


# -- the place -------------------------------------------------------------------------------------------------------
def test_a_private_folder_that_is_open_to_others(home: Path) -> None:
    workspace = Home(home).create()
    assert [finding.name for finding in place.workspace(workspace)] == ["folder"]
    workspace.private.chmod(0o755)
    finding = place.workspace(workspace)[1]
    assert finding.level == "fail" and shlex.split(finding.fix) == ["chmod", "700", str(workspace.private)]


def test_a_workspace_on_a_network_file_system(home: Path, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text(f"disk / ext4 rw 0 0\nserver:/x {home} nfs4 rw 0 0\n")
    assert level(place.workspace(Home(home), tmp_path), "file system") == "warn"


def test_a_workspace_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(place.tempfile, "TemporaryFile", refuse)
    finding = place.workspace(Home(home))[1]
    assert finding.level == "fail" and "LATHE_HOME" in finding.fix


def test_the_network_policy_and_what_contradicts_it() -> None:
    assert [finding.level for finding in place.network(True, {"HF_HUB_OFFLINE": "1"})] == ["ok", "ok"]
    online = place.network(False, {"HF_HUB_OFFLINE": "1", "https_proxy": "http://user:secret@proxy"})
    assert level(online, "hub") == "warn" and level(online, "proxy") == "info"
    assert "secret" not in repr(online)


@pytest.mark.parametrize(
    ("environment", "size", "name", "expected"),
    [
        ({"TERM": "dumb", "LANG": "C.UTF-8"}, (80, 24), "TERM", "warn"),
        ({"TERM": "dumb", "LANG": "C.UTF-8"}, None, "TERM", "ok"),
        ({"TERM": "xterm", "LANG": "C"}, (80, 24), "locale", "warn"),
        ({"TERM": "xterm", "LC_ALL": "de_DE.UTF-8", "LANG": "C"}, (80, 24), "locale", "ok"),
        ({"TERM": "xterm", "LANG": "C.UTF-8"}, (79, 24), "size", "warn"),
    ],
)
def test_the_terminal(environment: dict[str, str], size: tuple[int, int] | None, name: str, expected: str) -> None:
    assert level(place.terminal(environment, size), name) == expected


def test_a_nearly_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100 * 1024**2, "total": 1024**4})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    finding = one(machine.disk(home / "not" / "yet"))
    assert finding.level == "fail" and finding.name == str(home)
