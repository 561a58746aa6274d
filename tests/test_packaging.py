"""What a user gets from `pip install`: the three packages under their own names, the three commands, types and data files."""

import resource
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"vitscale": "vitscale", "vitscale_launch": "launch", "vitscale_data_tools": "data_tools"}
COMMANDS = {
    "vitscale": "vitscale.cli:main",
    "vitscale-launch": "vitscale_launch.cli:main",
    "vitscale-data": "vitscale_data_tools.cli:main",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, because setuptools leaves a build folder beside the source."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", output, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(output.glob("*.whl"))


def test_the_listed_packages_are_the_tree() -> None:
    found = {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for name, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {*FOLDERS, f"vitscale-{version('vitscale')}.dist-info"}
    modules = {path for path in names if path.endswith(".py")}
    assert modules == {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}" for name, folder in FOLDERS.items() for path in (ROOT / folder).rglob("*.py")
    }


def test_the_wheel_holds_types_licence_and_sample(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{name}/py.typed" for name in FOLDERS} <= names
    sample = {f"vitscale_data_tools/sample/{path.name}" for path in (ROOT / "data_tools" / "sample").iterdir()}
    assert len(sample) == 5
    assert sample <= names
    assert any(name.endswith("/LICENSE") and ".dist-info/" in name for name in names)


def test_what_is_installed_imports_and_launch_is_no_package_of_its_own(tmp_path: Path) -> None:
    script = (
        "import importlib.util as util, vitscale, vitscale_launch, vitscale_data_tools\n"
        "assert util.find_spec('launch') is None and util.find_spec('data_tools') is None"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True, cwd=tmp_path)


def test_the_commands_resolve() -> None:
    installed = {entry.name: entry for entry in entry_points(group="console_scripts") if entry.dist and entry.dist.name == "vitscale"}
    assert {name: entry.value for name, entry in installed.items()} == COMMANDS
    assert all(callable(entry.load()) for entry in installed.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_fast_and_by_module_too(command: str, tmp_path: Path) -> None:
    module = COMMANDS[command].partition(".")[0]
    script = [str(Path(sys.executable).with_name(command)), "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage:" in subprocess.run(script, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The aim is half a second. Processor time, because this also runs on busy machines.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    by_module = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    shown = subprocess.run(by_module, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "Usage:" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "typer" in imported
    assert imported & {"torch", "numpy", "ray", "deepspeed", "matplotlib"} == set()


def test_the_pinned_versions_satisfy_every_requirement() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines)}
    project = PROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    requirements = [requirement for requirement in map(Requirement, texts) if requirement.name != "vitscale"]
    assert {r.name for r in requirements if canonicalize_name(r.name) not in pinned} == set()
    assert {r.name for r in requirements if pinned[canonicalize_name(r.name)] not in r.specifier} == set()


def test_every_dependency_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start, end = lines.index("dependencies = ["), lines.index("[project.scripts]")
    listed = [line for line in lines[start + 1 : end] if '"' in line]
    assert len(listed) > 20
    assert [line for line in listed if "#" not in line] == []
