# SPDX-License-Identifier: Apache-2.0
"""Holds the layout: which way imports run, how large files and functions are, no near copies."""

import ast
import difflib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects" / "vastdet"
LOW = {"layers", "vocabulary"}

# Sub-package -> the sub-packages it may import (CONTRIBUTING.md, "Layout"). None: anything.
ALLOWED: dict[str, set[str] | None] = {
    "layers": {"layers"},
    "vocabulary": {"vocabulary"},
    "text": LOW | {"text"},
    "backbones": LOW | {"backbones"},
    "detr": LOW | {"text", "backbones", "detr"},
    "one_stage": LOW | {"backbones", "one_stage"},
    "data": LOW | {"data"},
    "evaluation": LOW | {"data", "evaluation"},
    "models": LOW | {"text", "backbones", "detr", "one_stage"},
    "engine": None,
    "model_zoo": None,
    "report": None,
}
MAX_FILE_LINES = 600
MAX_BODY_LINES = 80
MAX_CONSTRUCTOR_ARGUMENTS = 14
MIN_COPY_STATEMENTS = 8
COPY_RATIO = 0.9


def python_files() -> list[Path]:
    """Every Python file of the package and of the tools."""
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tools").glob("*.py")])


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Every function and method of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def body_without_docstring(function: ast.FunctionDef) -> list[ast.stmt]:
    """The statements of a function after its docstring."""
    has_docstring = ast.get_docstring(function) is not None
    return function.body[1:] if has_docstring else function.body


def imported_subpackages(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs (sub-package, full module) of the vastdet modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            module = node.module or ""
            names = [module] if "." in module else [f"{module}.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "vastdet" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                yield parts[1], name


def test_imports_run_one_way() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts
        if len(own) == 1:
            continue
        for subpackage, name in imported_subpackages(path):
            allowed = ALLOWED[own[0]]
            if own[0] == "models" and subpackage == "models":
                same_architecture = len(own) == 2 or name.split(".")[2:3] == [own[1]]
                if not same_architecture:
                    wrong.append(f"{path.relative_to(ROOT)}: {name}, another architecture")
            elif own[0] == "engine" and subpackage == "models":
                wrong.append(f"{path.relative_to(ROOT)}: {name}, the engine names no architecture")
            elif allowed is not None and subpackage not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong, "imports against the layout:\n" + "\n".join(wrong)


def test_every_subpackage_has_a_rule() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert folders <= set(ALLOWED), f"no import rule for {folders - set(ALLOWED)}"


def test_files_and_functions_stay_small() -> None:
    large = []
    for path in python_files():
        lines = len(path.read_text("utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            large.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {MAX_FILE_LINES}")
        for function in functions(path):
            body = body_without_docstring(function)
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            where = f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
            if length > MAX_BODY_LINES:
                large.append(f"{where}: body of {length} lines, at most {MAX_BODY_LINES}")
            arguments = len(function.args.args) + len(function.args.kwonlyargs) - 1
            if function.name == "__init__" and arguments > MAX_CONSTRUCTOR_ARGUMENTS:
                large.append(f"{where}: {arguments} arguments, at most {MAX_CONSTRUCTOR_ARGUMENTS}")
    assert not large, "\n".join(large)


def near_copies(paths: list[Path]) -> list[str]:
    """Pairs of functions with 8 or more statement lines that are at least 90 % equal."""
    bodies = []
    for path in paths:
        for function in functions(path):
            lines = [
                line
                for statement in body_without_docstring(function)
                for line in ast.unparse(statement).splitlines()
            ]
            if len(lines) >= MIN_COPY_STATEMENTS:
                bodies.append((f"{path.name}:{function.lineno} {function.name}", lines))
    found = []
    for i, (name, lines) in enumerate(bodies):
        for other_name, other in bodies[:i]:
            matcher = difflib.SequenceMatcher(None, lines, other, autojunk=False)
            if matcher.real_quick_ratio() < COPY_RATIO or matcher.quick_ratio() < COPY_RATIO:
                continue
            if matcher.ratio() >= COPY_RATIO:
                found.append(f"{name} is nearly {other_name}")
    return found


def test_no_function_is_a_near_copy() -> None:
    found = near_copies(python_files())
    assert not found, "\n".join(found)


def test_a_near_copy_would_be_found(tmp_path: Path) -> None:
    lines = "\n".join(f"    a{i} = f({i})" for i in range(12))
    (tmp_path / "one.py").write_text(f"def one():\n{lines}\n")
    (tmp_path / "two.py").write_text(f"def two():\n{lines.replace('f(3)', 'g(3)')}\n")
    assert near_copies(sorted(tmp_path.glob("*.py"))) == ["two.py:1 two is nearly one.py:1 one"]


@pytest.mark.parametrize("pattern", ["/work/", "/tmp/", "/root/"])
def test_no_path_of_a_machine(pattern: str) -> None:
    kinds = {".py", ".yaml", ".md", ".sh", ".html", ".toml"}
    folders = ("projects", "configs", "datasets", "tools", "benchmarks")
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kinds]
    named = [str(p.relative_to(ROOT)) for p in files if pattern in p.read_text("utf-8")]
    assert not named, f"{pattern} stands in {named}"
