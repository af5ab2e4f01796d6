"""The functions that the engine hands to a Starmap, found by reading its source."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SPLITTERS = {"apply"}
"""Class methods of Starmap that take the function first, as the class does."""


@dataclass
class _Source:
    """What the modules of the engine say.

    Attributes:
        functions: names that some module defines as a function at its top level
        core_tasks: what classes have as `core_task`, which a calculator hands over as `self.core_task`
        handed: by the module (`event_based`) and the name of a function, its calls' positional arguments
    """

    trees: dict[Path, ast.Module]
    functions: set[str] = field(default_factory=set)
    core_tasks: set[str] = field(default_factory=set)
    handed: dict[tuple[str, str], list[list[ast.expr]]] = field(default_factory=lambda: defaultdict(list))


def engine_tasks(package: Path) -> dict[str, set[str]]:
    """The names of all functions that a package hands to a Starmap, and where: `calculators/classical.py:648`.

    Found are the first arguments of `Starmap(…)` and `Starmap.apply(…)`, also by way of a variable, a parameter or a
    calculator's `core_task`, and what generators yield as subtasks: tuples that begin with a function.

    Raises:
        ValueError: names the place of a first argument that it cannot follow.
    """
    source = _read(package)
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in source.trees.items():
        for function, node in _expressions(tree):
            place = f"{path.relative_to(package)}:{node.lineno}"
            if isinstance(node, ast.Call) and _makes_starmap(node) and node.args:
                for name in _names(node.args[0], function, source, place):
                    found[name].add(place)
            elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and node.value.elts:
                first = node.value.elts[0]
                if isinstance(first, ast.Name) and first.id in source.functions - _locals(function):
                    found[first.id].add(place)
    return dict(found)


def _read(package: Path) -> _Source:
    paths = [
        path for path in package.rglob("*.py") if path.relative_to(package) != Path("baselib/parallel.py")
    ]
    source = _Source({path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)})
    for path, tree in source.trees.items():
        imported = {
            alias.asname or alias.name: (node.module or "").rpartition(".")[2]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        source.functions |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                source.core_tasks |= {
                    assigned.value.id
                    for assigned in node.body
                    if isinstance(assigned, ast.Assign)
                    and isinstance(assigned.value, ast.Name)
                    and _last_name(assigned.targets[0]) == "core_task"
                }
            elif isinstance(node, ast.Call):
                name = _last_name(node.func)
                of_module = isinstance(node.func, ast.Attribute) and _last_name(node.func.value)
                source.handed[of_module or imported.get(name, path.stem), name].append(node.args)
    return source


def _expressions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | None, ast.expr]]:
    """Every expression with the outermost function that it is in."""

    def walk(
        node: ast.AST, function: ast.FunctionDef | None
    ) -> Iterator[tuple[ast.FunctionDef | None, ast.expr]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield function, child
            inner = child if isinstance(child, ast.FunctionDef) and function is None else function
            yield from walk(child, inner)

    return walk(tree, None)


def _last_name(node: ast.expr) -> str:
    """`apply` of `parallel.Starmap.apply`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _makes_starmap(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute) and call.func.attr in SPLITTERS:
        return _last_name(call.func.value) in ("Starmap", "Threadmap")
    return _last_name(call.func) in ("Starmap", "Threadmap")


def _locals(function: ast.FunctionDef | None) -> set[str]:
    """Names that a function binds itself."""
    if function is None:
        return set()
    bound = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return bound | {argument.arg for argument in function.args.args}


def _names(node: ast.expr, function: ast.FunctionDef | None, source: _Source, place: str) -> set[str]:
    """The functions that an expression may be."""
    if isinstance(node, ast.IfExp):
        return _names(node.body, function, source, place) | _names(node.orelse, function, source, place)
    if isinstance(node, ast.Attribute) and node.attr == "__func__":
        return _names(node.value, function, source, place)
    if isinstance(node, ast.Attribute) and node.attr == "core_task":
        return source.core_tasks
    name = _last_name(node)
    found: set[str] = set()
    if function is None or name not in _locals(function):
        found = {name} & source.functions
    elif isinstance(node, ast.Name):
        for value in _values(name, function):
            found |= _names(value, function, source, place)
        parameters = [argument.arg for argument in function.args.args]
        if name in parameters:
            index, module = parameters.index(name), Path(place.partition(":")[0]).stem
            calls = source.handed[module, function.name]
            found |= {_last_name(call[index]) for call in calls if len(call) > index} & source.functions
    if found:
        return found
    raise ValueError(f"{place}: what is {ast.unparse(node)}?")


def _values(name: str, function: ast.FunctionDef) -> list[ast.expr]:
    """What a function assigns to a variable."""
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
