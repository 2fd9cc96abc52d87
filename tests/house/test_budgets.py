"""The house rules that a machine can check, on every Python file that we write."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("operator", "serving", "bootstrap", "kernels", "scripts", "examples", "benchmarks", "tests")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
DEBT_MARKS = ("TO" + "DO", "FIX" + "ME", "XX" + "X:", "HACK" + ":")


def sources(*rooms: str) -> list[Path]:
    paths = (path for room in rooms for path in sorted((ROOT / room).rglob("*.py")))
    return [path for path in paths if "generated" not in path.parts]


def long_file(text: str, _: ast.Module) -> Iterator[str]:
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines, more than {MAX_FILE_LINES}"


def debt_marks(text: str, _: ast.Module) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if any(mark in line for mark in DEBT_MARKS):
            yield f"line {number}: a mark of debt; pay it or write it into docs/"


def long_function(_: str, tree: ast.Module) -> Iterator[str]:
    for function in functions(tree):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"line {function.lineno}: {function.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"


def unannotated(_: str, tree: ast.Module) -> Iterator[str]:
    for function in functions(tree):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        bare = [a.arg for a in named if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
        if bare or function.returns is None:
            yield f"line {function.lineno}: {function.name} lacks annotations: {', '.join(bare) or 'return'}"


def bare_except(_: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"


def has_attribute_probe(_: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            yield f"line {node.lineno}: hasattr; give the object a type that says what it has"


def mutable_module_state(_: str, tree: ast.Module) -> Iterator[str]:
    """`global`, or a lower-case module name bound to an empty container that somebody means to fill."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global"
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict | ast.List):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                if name != name.upper() and not name.startswith("__"):
                    yield f"line {statement.lineno}: {name} is mutable module state"


def mixin(_: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Mixin"):
            yield f"line {node.lineno}: {node.name} is a class cut into files; compose instead"


def undocumented_module(text: str, tree: ast.Module) -> Iterator[str]:
    if text.strip() and ast.get_docstring(tree) is None:
        yield "no module docstring"


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All but Triton's kernels, whose arguments have no Python types and fill half of them."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return (n for n in found if not any(ast.unparse(by).startswith("triton.jit") for by in n.decorator_list))


Rule = Callable[[str, ast.Module], Iterator[str]]
EVERYWHERE: tuple[Rule, ...] = (long_file, long_function, unannotated, bare_except, debt_marks, mixin)
IN_PRODUCT: tuple[Rule, ...] = (has_attribute_probe, mutable_module_state, undocumented_module)


def violations(text: str, rules: tuple[Rule, ...]) -> list[str]:
    tree = ast.parse(text)
    return [message for rule in rules for message in rule(text, tree)]


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_keeps_the_rules(room: str) -> None:
    rules = EVERYWHERE if room == "tests" else EVERYWHERE + IN_PRODUCT
    found = [f"{path.relative_to(ROOT)}: {m}" for path in sources(room) for m in violations(path.read_text(), rules)]
    assert found == []


def test_the_rules_look_at_something() -> None:
    assert len(sources("serving")) > 20


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("x = 1\n" * 501, long_file),
        ("def f() -> None:\n" + "    x = 1\n" * 60, long_function),
        ("def f(a) -> None: ...", unannotated),
        ("def f(*, a: int): ...", unannotated),
        ("class C:\n    async def f(self, **k) -> None: ...", unannotated),
        ("try:\n    x = 1\nexcept:\n    pass", bare_except),
        ("hasattr(x, 'y')", has_attribute_probe),
        ("def f() -> None:\n    global x", mutable_module_state),
        ("cache = {}", mutable_module_state),
        ("cache: list[int] = []", mutable_module_state),
        ("class QueueMixin: ...", mixin),
        (f"x = 1  # {DEBT_MARKS[0]} later", debt_marks),
        ("import os", undocumented_module),
    ],
)
def test_each_rule_catches_its_fault(text: str, rule: Rule) -> None:
    assert violations(text, (rule,)) != []


@pytest.mark.parametrize("text", ["", '"""Says what it is."""\n\nNAMES = {}\n\n\ndef f(self, a: int) -> None: ...\n'])
def test_sound_code_passes(text: str) -> None:
    assert violations(text, EVERYWHERE + IN_PRODUCT) == []
