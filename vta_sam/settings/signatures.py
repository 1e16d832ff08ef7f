"""What the constructor of a part takes, read from its source file: nothing is imported, so that a config is checked
before torch is.

A part's signature becomes a class of :class:`Settings`, one field an argument. A class of one's own brings its schema
that way, with ranges where it annotates them (``Annotated[int, Field(ge=1)]``), or by a pydantic class ``Settings``
inside it. What can't be read is left to the constructor.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model

from ..runtime.typed_settings import Number, Settings, Switch, Text, Whole, either

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_ROOTS = {"object", "ABC", "Protocol", "Generic", "Exception", "NamedTuple"}  # bases without arguments of their own
_PLAIN: dict[str, Any] = {"int": Whole, "float": Number, "bool": Switch, "str": Text, "Path": Text}
_LISTS = {"list", "tuple", "Sequence", "Iterable", "Collection", "List", "Tuple", "set"}
_MAPPINGS = {"dict", "Mapping", "Dict", "MutableMapping", "DictConfig"}
_RANGES = {"Ge": "ge", "Gt": "gt", "Le": "le", "Lt": "lt"}
_HOPS = 12  # imports that are followed from module to module
_UNREAD = object()


@dataclass
class Signature:
    """Arguments of a constructor.

    Args:
        name: of the class or function.
        types: {argument: type that pydantic checks}.
        defaults: {argument: default}; an argument without one has to be given. A default that is no constant is None.
        takes_more: whether there may be others (``**kwargs``).
        meanings: {argument: words of the docstring's ``Args:``}.
    """

    name: str
    types: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    takes_more: bool = False
    meanings: dict[str, str] = field(default_factory=dict)

    @property
    def required(self) -> list[str]:
        return [name for name in self.types if name not in self.defaults]

    @property
    def schema(self) -> type[Settings]:
        """A field an argument. Arguments may have names that pydantic's classes use, so that fields have aliases."""
        fields: dict[str, Any] = {f"argument_{name}": (kind, Field(
            default=self.defaults.get(name), alias=name, description=self.meanings.get(name, "")))
            for name, kind in self.types.items()}
        return create_model(self.name, __base__=_Arguments, **fields)


class _Arguments(Settings):
    model_config = {**Settings.model_config, "validate_default": False, "extra": "allow"}


@dataclass(frozen=True)
class _Module:
    name: str
    is_package: bool
    tree: ast.Module

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a line ``from … import`` names."""
        if not node.level:
            return node.module or ""
        package = self.name.split(".")[:None if self.is_package else -1]
        package = package[:len(package) - (node.level - 1)]
        return ".".join([*package, *([node.module] if node.module else [])])


@lru_cache(maxsize=256)
def signature_of(path: str) -> Signature | None:
    """The signature of a class or function, or None where its source can't be read.

    Args:
        path: dotted.
    """
    try:
        found = _located(path)
        made = None if found is None else _signature(*found)
        if made is not None and found is not None:
            made.meanings |= _meanings(ast.get_docstring(found[1]) or "")
        return made
    except (OSError, SyntaxError, ValueError, RecursionError):  # of a source that isn't Python's
        return None


def _meanings(docstring: str) -> dict[str, str]:
    """{argument: meaning} of a docstring's Google-style ``Args:`` or ``Attributes:``."""
    found: dict[str, str] = {}
    section = re.search(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)+)", docstring, re.MULTILINE)
    for names, words in re.findall(r"^ {4}([\w, ]+): (.+(?:\n {5,}.+)*)", section[1] if section else "", re.MULTILINE):
        plain = re.sub(r":\w+:`([^`]+)`|``([^`]+)``", lambda mark: mark[1] or mark[2], " ".join(words.split()))
        found |= {name: plain.removesuffix(".") for name in names.split(", ")}
    return found


def _located(path: str) -> tuple[_Module, Definition] | None:
    words = path.split(".")
    for end in range(len(words) - 1, 0, -1):
        module = _module(".".join(words[:end]))
        if module is not None:
            found = _find(module, words[end])
            for word in words[end + 1:]:  # a method of a class
                inside = [] if found is None else [item for item in found[1].body
                                                   if isinstance(item, Definition) and item.name == word]
                found = (found[0], inside[0]) if found is not None and inside else None
            return found if found is not None and isinstance(found[1], Definition) else None
    return None


@lru_cache(maxsize=256)
def _module(name: str) -> _Module | None:
    spec = _spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return _Module(name, spec.submodule_search_locations is not None, ast.parse(Path(spec.origin).read_bytes()))


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is. importlib.util.find_spec would import the packages that it is in."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    full = top
    for word in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        full = f"{full}.{word}"
        spec = PathFinder.find_spec(full, list(spec.submodule_search_locations))
    return spec


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, also below ``if TYPE_CHECKING`` and ``try``."""
    for item in body:
        yield item
        if isinstance(item, (ast.If, ast.Try)):
            yield from _statements([*item.body, *item.orelse, *getattr(item, "finalbody", [])])


def _find(module: _Module, name: str, hops: int = _HOPS) -> tuple[_Module, Any] | None:
    """What a name is in a module: a definition, or the value that is assigned to it; imports are followed."""
    statements = list(_statements(module.tree.body))
    for item in statements:
        if isinstance(item, Definition) and item.name == name:
            return module, item
        if isinstance(item, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in item.targets):
            return module, item.value
    for item in statements if hops else ():
        for alias in item.names if isinstance(item, ast.ImportFrom) else ():
            if name == (alias.asname or alias.name) or alias.name == "*":
                wanted = name if alias.name == "*" else alias.name
                source = _module(module.absolute(item))  # type: ignore[arg-type]
                found = None if source is None else _find(source, wanted, hops - 1)
                if found is not None:
                    return found
    return None


def _class_of(module: _Module, expression: ast.expr) -> tuple[_Module, ast.ClassDef] | None:
    """The class that a base names, ``Base``, ``Base[T]`` or ``package.Base``."""
    if isinstance(expression, ast.Subscript):
        expression = expression.value
    words = ast.unparse(expression).split(".")
    found = _find(module, words[0]) if len(words) == 1 else None
    if len(words) > 1:
        owner = _imported_module(module, words[0])
        source = _module(".".join([owner, *words[1:-1]])) if owner else None
        found = _find(source, words[-1]) if source is not None else None
    return (found[0], found[1]) if found is not None and isinstance(found[1], ast.ClassDef) else None


def _imported_module(module: _Module, name: str) -> str | None:
    for item in _statements(module.tree.body):
        for alias in item.names if isinstance(item, (ast.Import, ast.ImportFrom)) else ():
            if name == (alias.asname or alias.name):
                return f"{module.absolute(item)}.{alias.name}" if isinstance(item, ast.ImportFrom) else alias.name
    return None


# ---------------------------------------------------------------------- signatures

def _signature(module: _Module, found: Definition) -> Signature | None:
    if not isinstance(found, ast.ClassDef):
        is_method = any(ast.unparse(mark) == "classmethod" for mark in found.decorator_list)
        return _of_function(module, found, found.name, skip=int(is_method))
    own = next((item for item in found.body if isinstance(item, ast.ClassDef) and item.name == "Settings"), None)
    if own is not None:
        return _of_fields(module, own, found.name)
    for item in found.body:
        if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__new__"):
            return _of_function(module, item, found.name, skip=1)
    if _has_fields(found):
        return _of_fields(module, found, found.name)
    for base in found.bases:
        if ast.unparse(base).partition("[")[0].rpartition(".")[2] in _ROOTS:
            continue
        parent = _class_of(module, base)
        inherited = None if parent is None else _signature(*parent)
        if inherited is None:
            return None
        if inherited.types or inherited.takes_more:
            return replace(inherited, name=found.name)
    return Signature(found.name)


def _of_function(module: _Module, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, skip: int) -> Signature:
    told = function.args
    made = Signature(name, takes_more=told.kwarg is not None)
    by_place = [*told.posonlyargs, *told.args]
    with_default: list[ast.expr | None] = [None] * (len(by_place) - len(told.defaults))
    with_default += told.defaults
    for argument, default in [*zip(by_place, with_default), *zip(told.kwonlyargs, told.kw_defaults)][skip:]:
        _add(made, module, argument.arg, argument.annotation, default)
    return made


def _has_fields(found: ast.ClassDef) -> bool:
    """Whether a class's constructor is made of its fields."""
    marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in found.decorator_list]
    return any(ast.unparse(mark).rpartition(".")[2] == "dataclass" for mark in marks) or any(
        ast.unparse(base).rpartition(".")[2] in ("BaseModel", "Settings") for base in found.bases)


def _of_fields(module: _Module, found: ast.ClassDef, name: str) -> Signature | None:
    made = Signature(name)
    for base in reversed(found.bases):
        parent = _class_of(module, base)
        if parent is not None and _has_fields(parent[1]) and (inherited := _of_fields(*parent, name)) is not None:
            made.types |= inherited.types
            made.defaults |= inherited.defaults
            made.meanings |= inherited.meanings | _meanings(ast.get_docstring(parent[1]) or "")
    for item in found.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        kind, value = ast.unparse(item.annotation).strip("'\""), item.value
        call = {word.arg: word.value for word in value.keywords} if isinstance(value, ast.Call) else {}
        if kind.startswith(("ClassVar", "KW_ONLY", "typing.ClassVar")) or _constant(call.get("init")) is False:
            continue
        if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in ("field", "Field"):
            made.defaults.pop(item.target.id, None)
            given = call.get("default") or call.get("default_factory") or (value.args[0] if value.args else None)
            limits = {str(key): _constant(value) for key, value in call.items() if key in _RANGES.values()}
            _add(made, module, item.target.id, item.annotation, given, limits)
        else:
            _add(made, module, item.target.id, item.annotation, value)
    return made


def _add(made: Signature, module: _Module, name: str, annotation: ast.expr | None, default: ast.expr | None,
         limits: dict[str, Any] | None = None) -> None:
    kind = Any if annotation is None else _type(module, annotation)
    value = _constant(default)
    kind = Annotated[kind, Field(**limits)] if limits and kind is not Any else kind
    made.types[name] = kind | None if value is None and kind is not Any else kind  # as in ``width: int = None``
    if default is not None and not (isinstance(default, ast.Constant) and default.value is ...):
        made.defaults[name] = None if value is _UNREAD else value


def _constant(expression: ast.expr | None) -> Any:
    try:
        return _UNREAD if expression is None else ast.literal_eval(expression)
    except (ValueError, SyntaxError, TypeError):
        return _UNREAD


# ---------------------------------------------------------------------- types

def _type(module: _Module, expression: ast.expr, hops: int = _HOPS) -> Any:
    """A type that pydantic checks values of a config by; Any where the annotation is none of the plain ones."""
    if isinstance(expression, ast.Constant):
        if isinstance(expression.value, str):
            return _type(module, ast.parse(expression.value, mode="eval").body, hops)
        return None if expression.value is None else Any
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.BitOr):
        return _union([_type(module, side, hops) for side in (expression.left, expression.right)])
    if isinstance(expression, ast.Subscript):
        return _generic(module, expression, hops)
    name = ast.unparse(expression).rpartition(".")[2]
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _LISTS:
        return list[Any]
    if name in _MAPPINGS:
        return dict[str, Any]
    if isinstance(expression, ast.Name) and hops:
        found = _find(module, expression.id)
        if found is not None and isinstance(found[1], ast.expr):  # an alias, such as Weighting = Literal["v", "x"]
            return _type(*found, hops - 1)
    return Any


def _generic(module: _Module, expression: ast.Subscript, hops: int) -> Any:
    name = ast.unparse(expression.value).rpartition(".")[2]
    inside = expression.slice.elts if isinstance(expression.slice, ast.Tuple) else [expression.slice]
    if name == "Literal":
        values = tuple(_constant(item) for item in inside)
        return Any if _UNREAD in values else Literal[values]
    if name == "Annotated":
        return _limited(_type(module, inside[0], hops), inside[1:])
    parts = [_type(module, item, hops) for item in inside
             if not (isinstance(item, ast.Constant) and item.value is ...)]
    if name == "Optional":
        return _union([parts[0], None])
    if name == "Union":
        return _union(parts)
    if name in _LISTS:
        return list[parts[0]] if len({str(part) for part in parts}) == 1 else list[Any]  # type: ignore[valid-type]
    if name in _MAPPINGS:
        return dict[str, parts[-1]]  # type: ignore[valid-type]
    return Any


def _limited(kind: Any, marks: Sequence[ast.expr]) -> Any:
    """A type with the range that Field(ge=…), Interval(ge=…, le=…), Ge(…) and the like give it."""
    limits: dict[str, Any] = {}
    for mark in marks:
        if isinstance(mark, ast.Call):
            name = ast.unparse(mark.func).rpartition(".")[2]
            limits |= {str(word.arg): _constant(word.value) for word in mark.keywords if word.arg in _RANGES.values()}
            if name in _RANGES and mark.args:
                limits[_RANGES[name]] = _constant(mark.args[0])
    known = {key: value for key, value in limits.items() if value is not _UNREAD}
    return Annotated[kind, Field(**known)] if known and kind is not Any else kind


_ORDER = (Switch, Whole, Number)  # a union tries numbers before texts, which take all


def _union(kinds: Sequence[Any]) -> Any:
    if Any in kinds:
        return Any
    known: list[Any] = []
    for kind in kinds:  # str | Path is one kind here
        known += [kind] if kind is not None and kind not in known else []
    known.sort(key=lambda kind: _ORDER.index(kind) if kind in _ORDER else len(_ORDER) + (kind is Text))
    made = known[0] if len(known) == 1 else either(known)
    return Union[made, None] if None in kinds else made
