"""Mutants of a module: its source with one operator, constant, condition or statement changed.

A test suite that still passes does not see the changed place. Annotations, docstrings, texts of errors, assertions
(which speak to the type checker) and imports are left as they are: changing them changes no result.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
"""A boundary that moves by one value, and the opposite."""
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
NAMES = {"min": "max", "max": "min", "all": "any", "any": "all", "ceil": "floor", "floor": "ceil"}
"""Functions and methods that are confused easily."""
LEFT_OUT = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)
"""Nodes whose parts are not changed (a `raise` is deleted as a whole)."""


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes:
        module: dotted name.
        function: qualified name of the innermost function, or of the class; "" at the top of the module.
        line: first line of the changed statement.
        last: last line of it, without the body of a compound statement.
        original: the statement, without the body of a compound one.
        mutated: the same after the change.
        body: whether the place runs when a function is called, not when the module is imported.
        number: place in `mutants` of the module.
    """

    module: str
    function: str
    line: int
    last: int
    original: str
    mutated: str
    body: bool
    number: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names the mutant in a record: it does not move with the lines above."""
        return self.module, self.function, self.original, self.mutated


@dataclass(frozen=True)
class Place:
    """A node that may change, with what puts another into its place."""

    node: ast.AST
    put: Callable[[ast.AST], None]
    statement: ast.stmt
    function: str
    body: bool


def mutants(source: str, module: str) -> list[Mutant]:
    """All mutants of a module's source, in the order of the source."""
    tree, found = ast.parse(source), []
    for place in _places(tree):
        original = _header(place.statement)
        for other in _changes(place.node):
            place.put(other)
            mutated = _header(
                other if place.node is place.statement and isinstance(other, ast.stmt) else place.statement
            )
            place.put(place.node)
            first, last = _lines(place.statement)
            found.append(Mutant(module, place.function, first, last, original, mutated, place.body, len(found)))
    return found


def mutated(source: str, number: int) -> ast.Module:
    """The syntax tree of mutant `number` of a source; its nodes keep their lines."""
    tree, count = ast.parse(source), 0
    for place in _places(tree):
        for other in _changes(place.node):
            if count == number:
                place.put(ast.copy_location(other, place.node))
                return ast.fix_missing_locations(tree)
            count += 1
    raise IndexError(f"there is no mutant {number}: the source has {count}")


def path_of(module: str) -> Path:
    """The file of a module of this checkout."""
    return Path(__file__).resolve().parent.parent / f"{module.replace('.', '/')}.py"


def _places(tree: ast.Module) -> Iterator[Place]:
    for i in range(len(tree.body)):
        yield from _below(tree, "body", i, None, "", False)


def _below(
    owner: ast.AST, field: str, index: int | None, statement: ast.stmt | None, function: str, body: bool
) -> Iterator[Place]:
    """The node at a field of its owner, and what is below it."""
    node = getattr(owner, field) if index is None else getattr(owner, field)[index]

    def put(other: ast.AST) -> None:
        if index is None:
            setattr(owner, field, other)
        else:
            getattr(owner, field)[index] = other

    if _is_docstring(node):
        return
    statement = node if isinstance(node, ast.stmt) else statement
    if isinstance(node, ast.expr | ast.stmt):
        assert statement is not None
        yield Place(node, put, statement, function, body)
    if isinstance(node, LEFT_OUT) or _is_type(node):
        return
    inner = f"{function}.{node.name}".lstrip(".") if isinstance(node, ast.FunctionDef | ast.ClassDef) else function
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "ctx", "bases", "type_params"):
            continue
        inside = body or (name == "body" and isinstance(node, ast.FunctionDef | ast.Lambda))
        where = inner if name == "body" else function
        if isinstance(value, ast.AST):
            yield from _below(node, name, None, statement, where, inside)
        elif isinstance(value, list):
            for i, one in enumerate(value):
                if isinstance(one, ast.AST):
                    yield from _below(node, name, i, statement, where, inside)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_type(node: ast.AST) -> bool:
    """Whether this is Literal[...], Callable[...] or another type beside annotations."""
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id[0].isupper()


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left, [operator], comparators):
            for kind in COMPARISONS[type(operator)]:
                yield ast.Compare(left, [kind()], comparators)
        case ast.Compare(left, operators, comparators):  # 0 < x < 1: each by itself
            for i, operator in enumerate(operators):
                for kind in COMPARISONS[type(operator)]:
                    yield ast.Compare(left, [*operators[:i], kind(), *operators[i + 1 :]], comparators)
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.AugAssign(target, operator, value):
            yield ast.Pass()
            if type(operator) in OPERATORS:
                yield ast.AugAssign(target, OPERATORS[type(operator)](), value)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.Constant(value):
            yield from map(ast.Constant, _constants(value))
        case ast.If(ast.Compare(_, [_])) | ast.While(ast.Compare(_, [_])) | ast.IfExp(ast.Compare(_, [_])):
            return  # the comparison's opposite is a mutant of its own
        case ast.If() | ast.While() | ast.IfExp():
            yield type(node)(**{**dict(ast.iter_fields(node)), "test": ast.UnaryOp(ast.Not(), node.test)})
        case ast.Return(value) if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.Expr() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Call(ast.Name(name), arguments, keywords) if name in NAMES:
            yield ast.Call(ast.Name(NAMES[name], ast.Load()), arguments, keywords)
        case ast.Call(ast.Attribute(value, name), arguments, keywords) if name in NAMES:
            yield ast.Call(ast.Attribute(value, NAMES[name], ast.Load()), arguments, keywords)


def _constants(value: object) -> tuple[object, ...]:
    """Neighbors of a constant: of a real number one 10 % smaller, so that a level of 0.98 stays a level."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1)
    if isinstance(value, float):
        return (0.9 * value, value + 1) if value else (1.0,)
    return ()


def _header(node: ast.AST) -> str:
    """A statement's source, of a compound one without its body, in one line."""
    if isinstance(node, ast.stmt) and getattr(node, "body", None):
        bare = {name: value for name, value in ast.iter_fields(node) if name not in ("orelse", "finalbody", "handlers")}
        bare["body"] = [ast.Pass()]
        if "decorator_list" in bare:
            bare["decorator_list"] = []
        if isinstance(node, ast.Try):
            return "try:"
        short = type(node)(**{**bare, "orelse": []} if "orelse" in node._fields else bare)
        return ast.unparse(ast.fix_missing_locations(short)).removesuffix("pass").strip()
    return ast.unparse(ast.fix_missing_locations(node))


def _lines(statement: ast.stmt) -> tuple[int, int]:
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return statement.lineno, max(last, statement.lineno)
