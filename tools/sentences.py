"""Find the sentences of errors in the source: what is said on purpose, with placeholders for what is filled in."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scistream import errors

ROOT = Path(__file__).parents[1]
# Groups of sentences: those of a class of error by its gRPC status, and these.
USAGE, SETTINGS, CHECK, BACKEND, REASON, AS_CAUSE = "usage", "settings", "check", "backend", "reason", "as its cause"
_CLICK = ("UsageError", "ClickException", "BadParameter")
_SETTINGS = ("s2cs/settings.py", "s2cs/tables.py", "s2cs/identity/settings.py")  # whose ValueErrors are the user's
# What an expression is called in a sentence, where its own last word would say little.
_NAMES = {"strerror": "reason", "error": "reason", "found": "value", "text": "value", "why": "reason", "what": "thing"}


@dataclass(frozen=True)
class Sentence:
    """A sentence as users see it; `where` it is said, for whoever mends the page."""

    group: str
    text: str
    where: str


def sentences(*packages: str) -> list[Sentence]:
    """Give every sentence of a group once, in the order of the source."""
    trees = {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if "_pb2" not in path.name
    }
    groups = _groups(trees.values())
    found: dict[tuple[str, str], Sentence] = {}
    for name, tree in trees.items():
        for group, text, line in _said(tree, groups | ({"ValueError": SETTINGS} if name in _SETTINGS else {})):
            found.setdefault((group, text), Sentence(group, text, f"{name}:{line}"))
    return list(found.values())


def _groups(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Give the group of each class of error: ours, those derived from them anywhere, and those of click."""
    found = dict.fromkeys(_CLICK, USAGE) | {"Broke": REASON}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.ScistreamError):
            found[name] = value.status
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if isinstance(base, ast.Name) and base.id in found:
                        found.setdefault(node.name, SETTINGS if node.name == "SettingsError" else found[base.id])
    return found


def _said(tree: ast.Module, groups: dict[str, str]) -> Iterator[tuple[str, str, int]]:
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ClassDef) and scope.name in groups:  # an error that makes its own sentence
            for node in ast.walk(scope):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__" and node.args:
                    yield from ((groups[scope.name], text, node.lineno) for text in _texts(node.args[0], {}))
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            known = _assigned(scope)
            for node in _own(scope):
                for group, expression in _expressions(node, groups):
                    yield from ((group, text, node.lineno) for text in _texts(expression, known))


def _expressions(node: ast.AST, groups: dict[str, str]) -> Iterator[tuple[str, ast.expr]]:
    """Give what a node says to users, and its group."""
    match node:
        case ast.Call(func=ast.Name(id="Finding"), args=[ast.Constant(value=False), text, *_]):
            yield CHECK, text
        case ast.Call(func=ast.Name(id="Found"), keywords=[*_, ast.keyword(arg="reason", value=text)]):
            yield BACKEND, text
        case ast.Call(func=ast.Name(id="Decision"), args=[ast.Constant(value=False), text, _, *error]):
            kinds = [groups[n.id] for e in error for n in ast.walk(e) if isinstance(n, ast.Name) and n.id in groups]
            for group in kinds or ["PERMISSION_DENIED"]:
                yield group, text
        case ast.Tuple(elts=[_, text, ast.Name(id=kind)]) if kind in groups:
            yield groups[kind], text
        case ast.Tuple(elts=[ast.Attribute(value=ast.Name(id="S")), text]):
            yield REASON, text
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[text, *_]) if name in groups:
            yield groups[name], text
        case ast.Raise(exc=ast.Call(func=ast.Name(id="kind") | ast.Call(), args=[text])):
            yield AS_CAUSE, text
        case ast.AnnAssign(target=ast.Name(id="_HINTS"), value=ast.Dict(values=hints)):
            for hint in hints:
                yield "FAILED_PRECONDITION", ast.JoinedStr([ast.Constant("session {uid} is {state}: "), hint])


def _own(scope: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Walk through a function without the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            yield from _own(child)


def _assigned(scope: ast.AST) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in _own(scope):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).extend(_texts(node.value, {}))
    return found


def _texts(node: ast.expr, known: dict[str, list[str]]) -> list[str]:
    """Give what an expression can read as; nothing where it is no text of the source."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return ["".join(_part(value) for value in values)]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body, known), *_texts(orelse, known)]
        case ast.BinOp(left=left, right=right):
            return [one + other for one in _texts(left, known) for other in _texts(right, known)]
        case ast.Name(id=name):
            return [text for text in known.get(name, []) if " " in text]
    return []


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    words = [n.attr if isinstance(n, ast.Attribute) else n.id for n in _words(node)]
    word = (words or ["value"])[0].strip("_").lower()
    return f"{{{_NAMES.get(word, word)}}}"


def _words(node: ast.AST) -> Iterator[ast.Attribute | ast.Name]:
    """Give the names in an expression, what a function is applied to before the function."""
    if isinstance(node, ast.Call):
        for argument in node.args:
            yield from _words(argument)
        yield from _words(node.func)
    elif isinstance(node, ast.Attribute | ast.Name):
        yield node
    else:
        for child in ast.iter_child_nodes(node):
            yield from _words(child)
