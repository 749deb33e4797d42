"""Imports point downward only: read from the source, so that a new import cannot slip in."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "videornn"
LEVELS = [
    {"errors", "schema"},
    {"distributed"},
    {"system"},
    {"config"},
    {"data", "models"},
    {"checkpoints"},
    {"evaluation", "inference"},
    {"explain"},
    {"training", "report", "demo"},
    {"tools"},
    {"cli"},
    {"__main__", "__init__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def _name(path: Path) -> str:
    """What a file of the package is imported as."""
    return ".".join(("videornn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {_name(path): path for path in ROOT.rglob("*.py")}


def _imports(path: Path) -> set[str]:
    """Modules of videornn that a file imports, outside `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("videornn"):
            names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("videornn")}
    return found


IMPORTS = {name: _imports(path) for name, path in MODULES.items()}


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_import_points_to_a_lower_level_or_stays_inside_its_part() -> None:
    for module, imports in IMPORTS.items():
        for target in imports:
            assert _part(target) == _part(module) or LEVEL[_part(target)] < LEVEL[_part(module)], (
                f"{module} imports {target}"
            )


def test_no_module_imports_itself_by_way_of_others() -> None:
    tuple(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names them


def test_data_and_models_never_see_each_other() -> None:
    seen = {(_part(module), _part(target)) for module, imports in IMPORTS.items() for target in imports}
    assert seen.isdisjoint({("data", "models"), ("models", "data")})
