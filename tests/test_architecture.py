"""The house rules that are checked by reading the source: layers, library owners, cycles, sizes, a test beside each file.

Nothing is imported, so this also runs where no dependency is installed. Each rule is a function from the source files to
the list of what breaks it; the second half of the file shows every rule a small tree that it must reject.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    ("config",),
    ("dist",),
    ("nn",),
    ("models", "data", "optim"),
    ("objectives", "checkpoint", "weights"),
    ("evals",),
    ("run_config",),
    ("plan",),
    ("engine",),
    ("train",),
    ("api",),
    ("events_commands", "checkpoint_commands", "models_commands", "weights_commands"),
    ("cli",),
    ("__main__",),
)
"""Rooms of `vitscale`, lowest first: a room imports lower ones only, never one of its own row. The package itself is the API."""

MAY_IMPORT = {
    "vitscale": (),
    # The run's configuration for one thing: to show what a run's transforms make of a sample.
    "vitscale_data_tools": ("vitscale.config", "vitscale.data", "vitscale.dist", "vitscale.run_config"),
    "vitscale_launch": (
        "vitscale.api",
        "vitscale.config",
        "vitscale.run_config",
        "vitscale.plan",
        "vitscale.train",
        "vitscale_data_tools",
    ),
}
"""What each installed package may import of the other two (by dotted prefix), besides the public names of `vitscale`."""

FOLDERS = {"vitscale": "vitscale", "launch": "vitscale_launch", "data_tools": "vitscale_data_tools"}
"""Source folder and the name it is installed under."""

OWNERS: dict[str, tuple[str, ...]] = {
    "deepspeed": ("vitscale/engine/",),
    "ray": ("launch/",),
    "webdataset": ("vitscale/data/", "data_tools/"),
    "tensorboard": ("vitscale/train/observers.py",),
    "torch.utils.tensorboard": ("vitscale/train/observers.py",),
    "yaml": ("vitscale/config/",),
    "obstore": ("vitscale/data/storage/object_store.py",),
    "matplotlib": ("launch/", "data_tools/stats_plots.py", "vitscale/train/goodput_plot.py"),
    # Whoever reads a pickle runs its author's code: nobody does.
    "pickle": (),
}
"""Third-party library and the only places that import it."""

COMMAND_FILES = (
    "vitscale/cli.py",
    "vitscale/events_commands.py",
    "vitscale/checkpoint_commands.py",
    "vitscale/models_commands.py",
    "vitscale/weights_commands.py",
    "launch/cli.py",
    "data_tools/cli.py",
    "data_tools/dataset_commands.py",
    "data_tools/pack_cli.py",
)
"""Files whose functions may import our packages when they run, so that `--help` stays fast."""

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, absolute, and the function it happens in (None at the top of the file)."""

    target: str
    line: int
    function: str | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source file: its path from the root of the repository, its installed module name, and what it imports."""

    path: str
    module: str
    tree: ast.Module
    num_lines: int
    imports: tuple[Import, ...]

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    @property
    def is_package(self) -> bool:
        return self.path.endswith("/__init__.py")


Sources = Sequence[Source]
Rule = Callable[[Sources], list[str]]


def layers(sources: Sources) -> list[str]:
    """Rooms of `vitscale` import lower rooms only."""
    level = {room: number for number, row in enumerate(LAYERS) for room in row}
    broken = []
    for source, found in _imports(sources):
        if not (_is_within(source.module, "vitscale") and _is_within(found.target, "vitscale")):
            continue
        here, there = _room(source.module), _room(found.target)
        unknown = next((room for room in (here, there) if room and room not in level), None)
        if unknown:
            broken.append(f"{source.path}:{found.line}: {unknown} has no layer; give it one in LAYERS")
        elif here and here != there and (not there or level[there] >= level[here]):
            broken.append(f"{source.path}:{found.line}: {here} imports {there or 'the public API'}, which is not below it")
    return broken


def package_limits(sources: Sources) -> list[str]:
    """Nothing imports `launch`; `data_tools` and `launch` import only the rooms meant for them, siblings relatively."""
    broken = []
    for source, found in _imports(sources):
        target_package = found.target.partition(".")[0]
        if target_package in ("launch", "data_tools"):
            broken.append(f"{source.path}:{found.line}: imports {found.target}; its installed name is {FOLDERS[target_package]}")
        elif target_package in MAY_IMPORT and target_package != source.package:
            allowed = (*MAY_IMPORT[source.package], *(("vitscale",) if found.target == "vitscale" else ()))
            if source.package == "vitscale" or not any(_is_within(found.target, prefix) for prefix in allowed):
                broken.append(f"{source.path}:{found.line}: {source.package} must not import {found.target}")
    return broken


def relative_siblings(sources: Sources) -> list[str]:
    """Inside the renamed folders siblings are imported relatively, so that the folder works under any name."""
    return [
        f"{source.path}:{node.lineno}: import siblings relatively"
        for source in sources
        if source.package != "vitscale"
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.ImportFrom) and not node.level and _is_within(node.module or "", source.package))
        or (isinstance(node, ast.Import) and any(_is_within(alias.name, source.package) for alias in node.names))
    ]


def owners(sources: Sources) -> list[str]:
    """Each library in OWNERS is imported by its owner only."""
    return [
        f"{source.path}:{found.line}: {library} belongs to {' and '.join(places) or 'nobody'}"
        for source, found in _imports(sources)
        for library, places in OWNERS.items()
        if _is_within(found.target, library) and not source.path.startswith(places or ("none",))
    ]


def cycles(sources: Sources) -> list[str]:
    """No module imports itself through others."""
    modules = {source.module for source in sources}
    edges = {source.module: sorted({found.target for found in source.imports} & modules - {source.module}) for source in sources}
    return [" -> ".join(cycle) for start in sorted(edges) if (cycle := _path_back(start, edges)) and start == min(cycle)]


def in_function_imports(sources: Sources) -> list[str]:
    """Our packages are imported at the top of a file, except by command bodies."""
    return [
        f"{source.path}:{found.line}: {found.function} imports {found.target}; move it to the top of the file"
        for source, found in _imports(sources)
        if found.function and source.path not in COMMAND_FILES and found.target.partition(".")[0] in FOLDERS.values()
    ]


def sizes(sources: Sources) -> list[str]:
    """Files and functions that fit in a reader's head."""
    broken = [
        f"{source.path}: {source.num_lines} lines, the limit is {MAX_FILE_LINES}" for source in sources if source.num_lines > MAX_FILE_LINES
    ]
    for source in sources:
        for function in _functions(source.tree):
            num_lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                broken.append(f"{source.path}:{function.lineno}: {function.name} has {num_lines} lines, limit {MAX_FUNCTION_LINES}")
    return broken


def missing_tests(sources: Sources, *, root: Path) -> list[str]:
    """Each source file that has something to run has its test file. `__init__.py` and `__main__.py` only pass names on."""
    wanted = [(source, _test_path(source.path)) for source in sources if _has_behaviour(source)]
    return [f"{source.path}: has no {test}" for source, test in wanted if not (root / test).is_file()]


RULES: tuple[Rule, ...] = (layers, package_limits, relative_siblings, owners, cycles, in_function_imports, sizes)


def read_sources(root: Path) -> list[Source]:
    """Every Python file of the three packages."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    names = {path: _module_name(path.relative_to(root)) for path in paths}
    return [_read(path, module=module, modules=frozenset(names.values()), root=root) for path, module in names.items()]


def _read(path: Path, *, module: str, modules: frozenset[str], root: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = tuple(_find_imports(tree, package=package, modules=modules))
    relative = path.relative_to(root).as_posix()
    return Source(path=relative, module=module, tree=tree, num_lines=len(text.splitlines()), imports=found)


def _module_name(path: Path) -> str:
    folder, *rest = path.with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])


def _find_imports(node: ast.AST, *, package: str, modules: frozenset[str], function: str | None = None) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(target=alias.name, line=child.lineno, function=function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, package=package)
            for alias in child.names:
                submodule = f"{base}.{alias.name}"
                is_module = submodule in modules or submodule in OWNERS
                yield Import(target=submodule if is_module else base, line=child.lineno, function=function)
        inner = child.name if isinstance(child, Function) else function
        yield from _find_imports(child, package=package, modules=modules, function=inner)


def _absolute(node: ast.ImportFrom, *, package: str) -> str:
    if not node.level:
        return str(node.module)
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _imports(sources: Sources) -> Iterator[tuple[Source, Import]]:
    return ((source, found) for source in sources for found in source.imports)


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _path_back(start: str, edges: Mapping[str, list[str]]) -> list[str]:
    """The shortest way from a module to itself, empty where there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for target in edges[way[-1]]:
            if target == start:
                return [*way, start]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def _has_behaviour(source: Source) -> bool:
    """Whether the file defines a function that does something; declarations of types and settings do not."""
    if Path(source.path).name in ("__init__.py", "__main__.py"):
        return False
    return any(not all(_is_declaration(statement) for statement in function.body) for function in _functions(source.tree))


def _is_declaration(statement: ast.stmt) -> bool:
    """A docstring, `...`, or `raise NotImplementedError(...)`."""
    if isinstance(statement, ast.Raise):
        return "NotImplementedError" in ast.unparse(statement)
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _test_path(path: str) -> str:
    folders = Path(path).parent.parts
    inside = folders[1:] if folders[0] == "vitscale" else folders
    return Path("tests", *inside, f"test_{Path(path).name}").as_posix()


SOURCES = read_sources(ROOT)


def test_the_tree_was_found() -> None:
    assert {source.package for source in SOURCES} == set(FOLDERS.values())
    assert {_room(source.module) for source in SOURCES if source.package == "vitscale"} >= {"config", "engine", "train"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    assert rule(SOURCES) == []


def test_each_source_file_has_its_test() -> None:
    assert missing_tests(SOURCES, root=ROOT) == []


def test_tests_import_the_installed_names() -> None:
    used = {
        (path.name, found.target.partition(".")[0])
        for path in (ROOT / "tests").rglob("*.py")
        for found in _find_imports(ast.parse(path.read_text(encoding="utf-8")), package="tests", modules=frozenset())
    }
    assert {(name, package) for name, package in used if package in ("launch", "data_tools")} == set()


LONG_FUNCTION = "def long():\n" + "    x = 1\n" * MAX_FUNCTION_LINES

BROKEN: tuple[tuple[Rule, dict[str, str], str], ...] = (
    (layers, {"vitscale/nn/a.py": "from vitscale.models import vit"}, "nn imports models"),
    (layers, {"vitscale/data/a.py": "import vitscale.optim.b"}, "data imports optim"),
    (layers, {"vitscale/data/a.py": "from ..optim import b"}, "data imports optim"),
    (layers, {"vitscale/plan/a.py": "from vitscale import train"}, "plan imports the public API"),
    (layers, {"vitscale/plan/a.py": "from vitscale import b", "vitscale/b/__init__.py": ""}, "b has no layer"),
    (layers, {"vitscale/extra/a.py": "import vitscale.config"}, "extra has no layer"),
    (layers, {"vitscale/dist/a.py": "def f():\n    if 1:\n        import vitscale.nn.b"}, "a.py:3: dist imports nn"),
    (package_limits, {"vitscale/cli.py": "import vitscale_launch.worker"}, "must not import vitscale_launch"),
    (package_limits, {"data_tools/a.py": "from vitscale.train import loop"}, "must not import vitscale.train"),
    (package_limits, {"data_tools/a.py": "from vitscale_launch import b"}, "must not import vitscale_launch"),
    (package_limits, {"launch/a.py": "from vitscale.engine import b"}, "must not import vitscale.engine"),
    (package_limits, {"launch/a.py": "from data_tools import b"}, "installed name is vitscale_data_tools"),
    (relative_siblings, {"launch/a.py": "from vitscale_launch import b"}, "relatively"),
    (relative_siblings, {"data_tools/a.py": "import vitscale_data_tools.b"}, "relatively"),
    (owners, {"vitscale/train/a.py": "import deepspeed.runtime"}, "deepspeed belongs to vitscale/engine/"),
    (owners, {"vitscale/train/a.py": "from ray import train"}, "ray belongs to launch/"),
    (owners, {"vitscale/train/loop.py": "from torch.utils import tensorboard"}, "tensorboard belongs to"),
    (owners, {"launch/a.py": "def f():\n    import yaml"}, "yaml belongs to"),
    (owners, {"vitscale/checkpoint/a.py": "import pickle"}, "pickle belongs to nobody"),
    (cycles, {"vitscale/nn/a.py": "from . import b", "vitscale/nn/b.py": "from .c import x", "vitscale/nn/c.py": "from . import a"}, "->"),
    (cycles, {"vitscale/nn/__init__.py": "from vitscale.nn.a import x", "vitscale/nn/a.py": "from vitscale.nn import y"}, "vitscale.nn ->"),
    (in_function_imports, {"vitscale/train/a.py": "class A:\n    def f(self):\n        import vitscale.nn"}, "f imports vitscale.nn"),
    (in_function_imports, {"launch/a.py": "def f():\n    from . import b"}, "f imports vitscale_launch"),
    (sizes, {"vitscale/nn/a.py": "x = 1\n" * (MAX_FILE_LINES + 1)}, "501 lines"),
    (sizes, {"launch/a.py": LONG_FUNCTION}, "long has 61 lines"),
)

SOUND = {
    "vitscale/__init__.py": "",
    "vitscale/cli.py": "def train():\n    from vitscale.train import loop",
    "vitscale/config/__init__.py": "import yaml\nfrom vitscale.config.base import x",
    "vitscale/config/base.py": "x = 1",
    "vitscale/train/loop.py": "import torch\nfrom vitscale.engine import engine\nfrom . import state\n" + "x = 1\n" * 497,
    "vitscale/train/state.py": "def short():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1),
    "vitscale/train/observers.py": "from torch.utils.tensorboard import SummaryWriter",
    "vitscale/engine/engine.py": "import deepspeed",
    "launch/worker.py": "import ray.train\nimport vitscale\nfrom vitscale.train import run\nfrom . import policy",
    "launch/policy.py": "import rayon",
    "data_tools/pack.py": "import webdataset\nfrom vitscale.data import manifest\nfrom .sources import x",
    "data_tools/sources.py": "x = 1",
}


def write_tree(root: Path, files: Mapping[str, str]) -> list[Source]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return read_sources(root)


@pytest.mark.parametrize(("rule", "files", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_rule_reports_what_breaks_it(tmp_path: Path, rule: Rule, files: dict[str, str], message: str) -> None:
    broken = rule(write_tree(tmp_path, files))
    assert len(broken) == 1
    assert message in broken[0]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_accepts_a_sound_tree(tmp_path: Path, rule: Rule) -> None:
    assert rule(write_tree(tmp_path, SOUND)) == []


def test_a_file_without_its_test_is_reported(tmp_path: Path) -> None:
    files = {
        "vitscale/nn/tested.py": "def f():\n    return 1",
        "tests/nn/test_tested.py": "",
        "vitscale/nn/untested.py": "class A:\n    def f(self):\n        return 1",
        "launch/untested.py": "def f():\n    return 1",
        "vitscale/alone.py": "def f():\n    return 1",
        "vitscale/nn/types.py": "class A:\n    x: int\n    def f(self): ...\n    def g(self):\n        raise NotImplementedError",
        "vitscale/nn/__init__.py": "def f():\n    return 1",
    }
    assert missing_tests(write_tree(tmp_path, files), root=tmp_path) == [
        "vitscale/alone.py: has no tests/test_alone.py",
        "vitscale/nn/untested.py: has no tests/nn/test_untested.py",
        "launch/untested.py: has no tests/launch/test_untested.py",
    ]
