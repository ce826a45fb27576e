"""The layout, read from the source: imports, circles, lengths of files, options in the library, names of classes.

Each rule is a function from a folder to sentences about what breaks it. It is asked about this repository, and about a made-up
tree that breaks it, so that a rule that finds nothing is seen.
"""

import ast
import collections
import graphlib
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("redrafter_jax", "infer", "train")
MAX_LINES = {"redrafter_jax": 250, "infer": 250, "train": 250, "tests": 350}
COMMAND = "Options"  # the class that every command has one of

# What a package may import besides itself.
PACKAGE_IMPORTS = {"redrafter_jax": set(), "infer": {"redrafter_jax"}, "train": {"infer", "redrafter_jax"}}

# What a folder or file of the library may import besides itself: "errors" and "fields" serve all, the arrows point down.
# A folder that is not in the table is a finding.
EVERYBODY = {"errors", "fields"}
LIBRARY_IMPORTS = {
    "version": set(),
    "errors": set(),
    "fields": {"errors"},
    "model": EVERYBODY,
    "cross_entropy": EVERYBODY | {"model"},
    "families": EVERYBODY | {"model"},
    "devices": EVERYBODY | {"model"},  # what a mesh has to carry is counted from a model's shapes
    "files": EVERYBODY | {"model", "families", "devices"},  # weights are read shard by shard onto the mesh
    "loss": EVERYBODY | {"model", "families", "cross_entropy"},
    "drift": EVERYBODY | {"model", "loss"},
    "decode": EVERYBODY | {"model", "families", "devices"},  # the engine asks which processes decode together
    "slices": EVERYBODY | {"model", "families", "devices", "files"},  # compiles programs on paper
    "__init__": {"version", "errors", "model", "families", "devices", "files", "loss", "decode", "slices"},  # the public names
}


def sources(root: pathlib.Path, *folders: str) -> Iterator[tuple[pathlib.Path, ast.Module]]:
    """Each Python file under these folders, relative to ``root``, with what it says."""
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            yield file.relative_to(root), ast.parse(file.read_text(), str(file))


def module_name(file: pathlib.Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def imported_names(file: pathlib.Path, tree: ast.Module) -> set[str]:
    """Dotted names that a file imports anywhere, also inside functions: for ``from a import b`` it is ``a.b``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = file.parts[: len(file.parts) - node.level] if node.level else ()
            start = [*above, node.module] if node.module else above
            found |= {".".join([*start, alias.name]) for alias in node.names}
    return found


def imports(root: pathlib.Path) -> dict[str, set[str]]:
    """For each module of the packages the modules of the packages that it imports."""
    files = list(sources(root, *PACKAGES))
    modules = {module_name(file) for file, _ in files}
    return {module_name(file): _modules(imported_names(file, tree), modules) for file, tree in files}


def _modules(names: set[str], modules: set[str]) -> set[str]:
    """The module in which each name lies: the name itself, or what is left of it without its last part."""
    lies_in = {name if name in modules else name.rpartition(".")[0] for name in names}
    return lies_in & modules


def package_of(module: str) -> str:
    return module.partition(".")[0]


def part_of(module: str) -> str:
    """The folder or file of the library in which a module lies; the library's own ``__init__`` by that name."""
    return (module.split(".") + ["__init__"])[1]


def wrong_packages(root: pathlib.Path) -> list[str]:
    """`train` -> `infer` -> `redrafter_jax`, never back."""
    arrows = _arrows(root)
    return [f"{a} imports {b}" for a, b in arrows if package_of(b) not in PACKAGE_IMPORTS[package_of(a)] | {package_of(a)}]


def wrong_parts(root: pathlib.Path) -> list[str]:
    """Within the library the arrows of LIBRARY_IMPORTS alone."""
    inside = [(a, b) for a, b in _arrows(root) if package_of(a) == package_of(b) == "redrafter_jax" and part_of(a) != part_of(b)]
    return [f"{a} imports {b}" for a, b in inside if part_of(b) not in LIBRARY_IMPORTS.get(part_of(a), set())]


def unlisted_parts(root: pathlib.Path) -> list[str]:
    """Folders and files of the library about which LIBRARY_IMPORTS says nothing."""
    parts = {part_of(module) for module in imports(root) if package_of(module) == "redrafter_jax"}
    return [f"redrafter_jax/{part} has no line in LIBRARY_IMPORTS" for part in sorted(parts - LIBRARY_IMPORTS.keys())]


def _arrows(root: pathlib.Path) -> list[tuple[str, str]]:
    return [(a, b) for a, found in imports(root).items() for b in sorted(found)]


def circles(root: pathlib.Path) -> list[str]:
    """The first circle of modules, if there is one."""
    graph = {module: found - {module} for module, found in imports(root).items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"{', '.join(sorted(set(error.args[1])))} import each other in a circle"]
    return []


def long_files(root: pathlib.Path) -> list[str]:
    """Files of more lines than MAX_LINES allows."""
    found = []
    for folder, limit in MAX_LINES.items():
        for file in sorted((root / folder).rglob("*.py")):
            count = len(file.read_text().splitlines())
            found += [f"{file.relative_to(root)}: {count} lines, at most {limit}"] if count > limit else []
    return found


def named_options(root: pathlib.Path) -> list[str]:
    """Strings of the library, docstrings apart, that name an option of a command: the caller gives its name."""
    found = []
    for file, tree in sources(root, "redrafter_jax"):
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings, of fields too
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                found += [f"{file}:{node.lineno}: {name}" for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", node.value)]
    return [line for line in found if ": --xla_" not in line]  # flags of the compiler are no options of ours


def recurring_classes(root: pathlib.Path) -> list[str]:
    """Class names of the packages that have two meanings; each command has its own Options."""
    where = collections.defaultdict(list)
    for file, tree in sources(root, *PACKAGES):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(str(file))
    return [f"{name}: {', '.join(files)}" for name, files in where.items() if len(files) > 1 and name != COMMAND]


def borrowing_tests(root: pathlib.Path) -> list[str]:
    """Test files that import from another test file: what they share belongs in a module that tests nothing."""
    found = []
    for file, tree in sources(root, "tests"):
        names = imported_names(file, tree)
        found += [f"{file} imports {name}" for name in sorted(names) if re.search(r"(^|\.)test_\w+(\.|$)", name)]
    return found


# rule -> files of a tree that breaks it, and what the rule says of them
OFFENCES = {
    wrong_packages: (
        {"infer/pair.py": "", "redrafter_jax/a.py": "def f():\n    from infer import pair\n", "infer/b.py": "import train.run\n",
         "train/run/__init__.py": ""},
        ["redrafter_jax.a imports infer.pair", "infer.b imports train.run"],
    ),
    wrong_parts: (
        {"redrafter_jax/model/a.py": "from ..decode.loop import run\n", "redrafter_jax/decode/loop.py": "run = 1\n"},
        ["redrafter_jax.model.a imports redrafter_jax.decode.loop"],
    ),
    unlisted_parts: ({"redrafter_jax/attic/a.py": ""}, ["redrafter_jax/attic has no line in LIBRARY_IMPORTS"]),
    circles: (
        {"infer/a.py": "import infer.b\n", "infer/b.py": "def f():\n    from infer.a import g\n"},
        ["infer.a, infer.b import each other in a circle"],
    ),
    long_files: (
        {"train/a.py": "1\n" * 251, "train/b.py": "1\n" * 250, "tests/c.py": "1\n" * 351},
        ["train/a.py: 251 lines, at most 250", "tests/c.py: 351 lines, at most 350"],
    ),
    named_options: (
        {"redrafter_jax/a.py": '"""Says --help."""\nshown = 1\nwhy = f"--mesh {shown}"\nflag = "--xla_cpu=1"\nrule = "a -- b"\n'},
        ["redrafter_jax/a.py:3: --mesh"],
    ),
    recurring_classes: (
        {"infer/a.py": "class Case: ...\nclass Options: ...\n", "train/b.py": "class Case: ...\nclass Options: ...\n"},
        ["Case: infer/a.py, train/b.py"],
    ),
    borrowing_tests: (
        {"tests/a/test_b.py": "from tests.a.test_c import thing\nfrom tests.a import test_c\nfrom tests import support\n"},
        ["tests/a/test_b.py imports tests.a.test_c", "tests/a/test_b.py imports tests.a.test_c.thing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", OFFENCES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule):
    found = rule(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", OFFENCES, ids=lambda rule: rule.__name__)
def test_a_tree_that_breaks_the_rule_is_found(rule, tmp_path):
    files, said = OFFENCES[rule]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rule(tmp_path) == said


def test_the_rules_read_the_repository():
    """A rule that looks into the wrong folder would find nothing wrong there."""
    graph = imports(ROOT)
    assert {package_of(module) for module in graph} == set(PACKAGES)
    assert "redrafter_jax.decode.loop" in graph["redrafter_jax.decode.engine"]
    assert any(package_of(b) == "infer" for b in graph["train.main"])
