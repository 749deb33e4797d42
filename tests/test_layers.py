"""Imports point downward only: read from the source, so that a new import cannot slip in."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "videornn"
LEVELS = [
    {"ema", "errors", "lamb", "paired", "schema"},
    {"compiling", "distributed", "optim"},
    {"system"},
    {"background", "config", "data", "kept_scores", "logger", "manifest", "plots", "timeline"},
    {"doctor", "models", "multigrid", "overlay", "predictions", "preflight", "resume"},
    {"checkpoint", "engine", "metrics", "precise_bn", "scores"},
    {"convert", "info", "meter", "results", "run_folder", "trained"},
    {"bad_share", "evaluate", "explain", "export", "nonfinite", "windows"},
    {"attention_watch", "predict", "report", "run"},
    {"__init__", "bench", "demo", "infer", "train"},
    {"cli_data", "cli_infer"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imports(path: Path) -> set[str]:
    """Parts of videornn that a file imports, outside `if TYPE_CHECKING`."""
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
            found |= {
                _part(f"{node.module}.{alias.name}" if node.module == "videornn" else node.module) for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {_part(alias.name) for alias in node.names if alias.name.startswith("videornn")}
    return found


def test_every_import_points_to_a_lower_level_or_stays_inside_its_part() -> None:
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for target in _imports(path) - {part}:
            assert LEVEL[target] < LEVEL[part], f"{path.name} ({part}) imports {target}"


def test_data_and_models_never_see_each_other() -> None:
    assert all("models" not in _imports(path) for path in (ROOT / "data").rglob("*.py"))
    assert all("data" not in _imports(path) for path in (ROOT / "models").rglob("*.py"))
