"""The house stands as drawn: packages, floors, the wheel, and what must not be imported where."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from lathe.engine.release import RELEASE

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("tui", "engine", "quantize", "store")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FORBIDDEN = ("pypi" + ".org", "files.python" + "hosted", "index" + "-url", "/wo" + "rk/")
"""Written in halves, for this file is searched as well."""
HEAVY = ("llama_cpp", "torch", "transformers", "onnxruntime", "optimum", "sentence_transformers", "ctransformers")


def _packages_on_disk() -> set[str]:
    found = set()
    for floor in FLOORS:
        for init in (ROOT / floor).rglob("__init__.py"):
            found.add("lathe." + ".".join(init.parent.relative_to(ROOT).parts))
    return found


def test_every_package_is_listed_for_the_wheel() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == _packages_on_disk()


def test_every_module_lives_in_a_package() -> None:
    homeless = [
        path
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*.py")
        if "training" not in path.parts and not (path.parent / "__init__.py").exists()
    ]
    assert homeless == []


def test_the_release_is_the_packaged_version() -> None:
    assert PROJECT["project"]["version"] == RELEASE


@pytest.mark.parametrize("folder", [*FLOORS, "tests", "benchmarks"])
def test_nothing_imports_a_floor_by_its_bare_name(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not [name for name in names if name.split(".")[0] in FLOORS], path


def test_no_file_names_a_registry_or_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".toml", ".txt", ".md", ".yaml", ".yml", "") and path.is_file():
            text = path.read_text("utf-8", "replace")
            for word in FORBIDDEN:
                assert word not in text, f"{name} names {word}"


def _modules_after(code: str) -> set[str]:
    """Names of the modules loaded by a fresh interpreter after `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import lathe.tui.main",
        "import lathe.tui.cli.root",
        "import lathe.tui.cli.batch, lathe.tui.cli.models, lathe.tui.cli.work, lathe.tui.cli.jobs, lathe.tui.cli.serve",
        "import lathe.engine.batch.execution, lathe.engine.local, lathe.engine.daemon",
    ],
)
def test_headless_code_loads_neither_textual_nor_native_libraries(code: str) -> None:
    loaded = _modules_after(code)
    assert not loaded & {"textual", *HEAVY}


def test_help_loads_almost_nothing() -> None:
    loaded = _modules_after(
        "import contextlib, io\n"
        "from lathe.tui.cli.root import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    cli(['--help'])"
    )
    assert not loaded & {"textual", "rich", "numpy", "sqlite_utils", "yaml", "jinja2", "starlette", *HEAVY}


def test_the_tui_process_loads_no_model_code() -> None:
    loaded = _modules_after("import lathe.tui.app, lathe.engine.connect")
    assert not loaded & {*HEAVY, "pysqlite3", "sqlite_vec", "uvicorn"}


def test_the_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    """Build it, unpack it alone, and let its command line speak; dependencies come from this environment."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(source)], check=True)
    subprocess.run([*pip, "-w", str(tmp_path), "."], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lathe_llm-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "lathe/engine/embedded/stdlib-4m/model.safetensors").stat().st_size == 8_397_312
    assert not (site / "lathe/__init__.py").exists()
    # On PYTHONPATH the dependencies are found, while the editable install's hook (a .pth file) is not run.
    paths = [str(site), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONNOUSERSITE": "1"}
    code = "import sys, lathe.tui.main as m; sys.argv[1:] = ['--version']; m.main(); print(m.__file__)"
    python = Path(sys.executable).resolve()
    done = subprocess.run([str(python), "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, origin = done.stdout.splitlines()
    assert version == f"lathe {RELEASE}"
    assert origin.startswith(str(site))
