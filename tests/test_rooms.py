"""Who may import whom. The source is read, not run: imports count wherever they stand."""

import ast
from pathlib import Path

import pytest

import diffews

PACKAGE = Path(diffews.__file__).parent

BELOW = {"errors", "runtime"}  # files, device: whoever needs them
MODEL = BELOW | {"images", "models", "variants"}
JOINED = MODEL | {"pipeline", "onnx", "runtime.loading", "data"}
MAY_IMPORT = {  # room, or a file that stands apart -> what it may import beside itself
    "errors": set(),
    "runtime": {"errors"},
    "images": BELOW,
    "models": BELOW,
    "data": BELOW | {"images"},
    "variants": BELOW | {"images", "models"},
    "pipeline": MODEL,
    "onnx": BELOW | {"images", "models"},
    "runtime.loading": MODEL | {"pipeline"},
    "evaluation": JOINED,
    "training": JOINED | {"evaluation"},
    "tools": JOINED | {"evaluation", "training"},
    "cli": JOINED | {"evaluation", "training", "tools"},
    "__main__": {"cli"},
    "__init__": JOINED - {"data"},  # names that `import diffews` loads when they are asked for
}


def module_of(file):
    """diffews/data/lists.py -> data.lists"""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def for_types_only(tree):
    """The nodes under `if TYPE_CHECKING:`, which are never run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                yield from ast.walk(child)


def imports(module, only_at_import=False):
    """The modules of this package that a file imports, without those for type annotations."""
    tree = ast.parse(FILES[module].read_text())
    left_out = set(for_types_only(tree))
    for node in tree.body if only_at_import else ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            name = name.removeprefix("diffews.")
            if name in FILES and name != module:
                yield name


def room_of(module):
    return module if module in MAY_IMPORT else module.partition(".")[0]


def test_every_room_says_what_it_may_import():
    assert {room_of(module) for module in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room):
    modules = [module for module in FILES if room_of(module) == room]
    found = {(module, name) for module in modules for name in imports(module)}
    assert [
        pair for pair in sorted(found) if room_of(pair[1]) not in MAY_IMPORT[room] | {room}
    ] == []


def test_no_file_imports_itself_by_way_of_others():
    ahead = {module: set(imports(module, only_at_import=True)) for module in FILES}
    while free := [module for module, names in ahead.items() if not names & ahead.keys()]:
        for module in free:
            del ahead[module]
    assert ahead == {}
