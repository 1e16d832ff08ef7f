"""Tables of settings: ``--help`` of programs with groups, and docs/settings.md.

All of it follows from the fields of the classes, from the constructors of the parts, and from the comments of conf/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ..checkpoints.parts import TARGET, dotted_path
from ..runtime.errors import InputError
from ..runtime.typed_settings import (
    Row, Section, Settings, kind_of, items_model, model_in, nearest, shown, type_words,
)
from .blocks import Recipe
from .signatures import signature_of

# of runtime/cluster/launch.py, which imports Hydra
SCHEDULERS = {"slurm": "vta_sam.runtime.cluster.slurm.Slurm", "ray": "vta_sam.runtime.cluster.ray_tasks.Ray"}
_OF_SIZE = "of the size="
_CHOICES = ("group", "choices", "default", "meaning")
BLOCKS = ("settings", "", "are shown by", "meaning")
_OF_TOOLS = ("# @package", "# yaml-language-server")
_KEY = re.compile(r"""^(\s*)["']?([\w.@/]+)["']?:(?:\s|$)(.*)$""")


@dataclass(frozen=True)
class Configs:
    """The files of conf/ that a program's settings come from.

    Args:
        folder: conf/.
        name: of the program's config.
    """

    folder: Path
    name: str

    @cached_property
    def defaults(self) -> dict[str, str | None]:
        """{group: the choice that stands where none is named} of the program's groups."""
        found: dict[str, str | None] = {}
        for entry in _read(self.folder / f"{self.name}.yaml").get("defaults", ()):
            if isinstance(entry, Mapping):
                found |= {group: choice for group, choice in entry.items() if not group.startswith("override ")}
        data = _read(self.folder / "data" / f"{found.get('data')}.yaml").get("defaults", ())
        for entry in data if "data" in found else ():  # such as /grounder@_global_.grounder: tiny
            if isinstance(entry, Mapping):
                found |= {group.strip("/").partition("@")[0]: choice for group, choice in entry.items()}
        return found

    @cached_property
    def values(self) -> dict[str, Any]:
        """Values of the program's config and its default size, unresolved."""
        own = _read(self.folder / f"{self.name}.yaml")
        return own | (_read(self.folder / "size" / f"{self.defaults['size']}.yaml") if "size" in self.defaults else {})

    def choices(self, group: str) -> list[str]:
        """Names in a group; of ``ablation`` those of its own groups."""
        folder = self.folder / group
        return [str(path.relative_to(folder).with_suffix("")) for path in sorted(folder.rglob("*.yaml"))]


def _read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def comments_of(path: Path) -> tuple[str, dict[str, str]]:
    """(first comment of a yaml, {dotted key: the comment behind its value})."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if (match := _KEY.match(line)) is None:
            continue
        indent, key, rest = len(match[1]), match[2], match[3]
        above = [item for item in above if item[0] < indent] + [(indent, key)]
        if " #" in f" {rest}":
            found[".".join(name for _, name in above)] = f" {rest}".rpartition(" #")[2].strip()
    head = " ".join(line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), lines)
                    if not line.startswith((*_OF_TOOLS, "#  ")))
    return re.split(r"(?<=[.?!]) (?=[A-Z])", head)[0], found


# ---------------------------------------------------------------------- rows

def block_rows(model: type[BaseModel], prefix: str, values: Any, without: str) -> Iterator[Row]:
    """A row a setting of a block and of the blocks in it.

    Args:
        model: the block's class.
        prefix: of its keys.
        values: of the configs, for defaults.
        without: what stands for the default of a setting that has none.
    """
    for name, field in model.model_fields.items():
        value = values.get(name) if isinstance(values, Mapping) else None
        kind = kind_of(field)
        if isinstance(kind, Recipe) and isinstance(value, Mapping) and TARGET in value:
            yield from part_rows(value, f"{prefix}{name}.", {}, kind.completed)
            continue
        if (inner := model_in(field)) is not None:
            yield from block_rows(inner, f"{prefix}{name}.", value, without)
            continue
        if (inner := items_model(field)) is not None:
            yield from block_rows(inner, f"{prefix}{name}.<name>.", None, without)
            continue
        default = shown(value) if value is not None else without if field.is_required() else shown(field.default)
        yield f"{prefix}{name}", type_words(field), default, field.description or ""


def path_of(target: str) -> str:
    """Where the class of a ``_target_`` lives, also of a scheduler."""
    return SCHEDULERS.get(target) or dotted_path(target)


def part_rows(recipe: Mapping[str, Any], prefix: str, comments: Mapping[str, str], completed: Iterable[str] = (),
              place: str = "") -> Iterator[Row]:
    """A row an argument of a part's constructor, and of the parts that it is given.

    Args:
        recipe: as a file of conf/ has it.
        prefix: of its keys.
        comments: of the file.
        completed: arguments that no user gives.
        place: of the recipe in its file.
    """
    told = signature_of(path_of(str(recipe[TARGET]))) if TARGET in recipe else None
    fields = told.schema.model_fields if told is not None else {}
    by_name = {field.alias: field for field in fields.values()}
    names = [name for name in recipe if not str(name).startswith("_") and name != "defaults"]
    names += [str(name) for name in by_name if name not in (*names, *completed)]
    for name in names:
        value, key = recipe.get(name), f"{place}{name}"
        if isinstance(value, Mapping) and (TARGET in value or name not in by_name):
            yield from part_rows(value, f"{prefix}{name}.", comments, completed, f"{key}.")
            continue
        field = by_name.get(name)
        words = type_words(field) if field is not None else "anything"
        default = shown(value) if name in recipe else "must be given" if told and name in told.required else \
            shown(told.defaults.get(name) if told else None)
        yield f"{prefix}{name}", words, default, comments.get(key) or (told.meanings.get(name, "") if told else "")


def group_sections(configs: Configs, group: str, completed: Iterable[str] = ()) -> Iterator[Section]:
    """A table a choice of a group: what the part takes."""
    without: list[Row] = []
    for choice in configs.choices(group):
        first, comments, content = choice_of(configs.folder / group, choice)
        title = f"{group}={choice}" if group in configs.defaults else f"+{group}/{choice}".replace(
            f"/{Path(choice).name}", f"={Path(choice).name}")
        if TARGET in content:
            yield Section(f"{title}: {first}", list(part_rows(content, f"{group}.", comments, completed)))
        else:
            without.append((title, "", "", first))
    if without:
        yield Section("", without, ("choice", "", "", "meaning"))


def choice_of(folder: Path, choice: str) -> tuple[str, dict[str, str], dict[str, Any]]:
    """(first comment, comments by key, content) of a file of a group, with the files of the group that it begins with.
    """
    first, comments = comments_of(folder / f"{choice}.yaml")
    content = _read(folder / f"{choice}.yaml")
    for base in content.pop("defaults", ()):
        if isinstance(base, str) and base != "_self_":
            _, above, below = choice_of(folder, base)
            comments, content = above | comments, _merged(below, content)
    return first, comments, content


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


# ---------------------------------------------------------------------- --help

def help_sections(settings: type[Settings], configs: Configs, topic: str) -> Iterator[Section]:
    """Tables of a program's ``--help``.

    Args:
        settings: the program's class.
        configs: its configs.
        topic: a group or a block, whose settings are shown; "": the program's own, and the names of the rest; "all".
    """
    if topic not in ("", "all"):
        yield from topic_sections(settings, configs, topic)
        return
    if choices := list(_choices(settings, configs)):
        yield Section("GROUP=NAME", choices, _CHOICES)
    yield Section("KEY=VALUE", [row for row in settings.help_rows() if is_plain(settings, row[0])])
    blocks = [name for name in settings.model_fields
              if not is_plain(settings, name) and name not in configs.defaults]
    further = [(f"{name}.KEY", "", f"--help={name}", settings.model_fields[name].description or "") for name in blocks]
    if further:
        yield Section("BLOCK.KEY=VALUE", further, BLOCKS)
    if topic == "all":
        for name in [*blocks, *configs.defaults]:
            yield from topic_sections(settings, configs, name)


def is_plain(settings: type[Settings], name: str) -> bool:
    """Whether a setting is a value, and no part or block."""
    field = settings.model_fields[name]
    return not isinstance(kind_of(field), Recipe) and model_in(field) is None and items_model(field) is None


def _choices(settings: type[Settings], configs: Configs) -> Iterator[Row]:
    added = {group.strip("+"): (group, meaning) for group, meaning in settings.GROUPS.items()}
    for group in dict.fromkeys([*added, *configs.defaults]):
        if group in ("launcher", "evaluation"):
            continue
        spelled, meaning = added.get(group, (group, ""))
        field = settings.model_fields.get(group)
        meaning = meaning or (field.description if field is not None else "") or ""
        names = configs.choices(group)
        words = f"{len(names)} files of conf/{group}" if len(names) > 12 else ", ".join(names) or "of your own"
        default = configs.defaults.get(group)
        yield spelled, words, "none" if spelled.startswith("+") else shown(default), meaning.partition(":")[0]


def topic_sections(settings: type[Settings], configs: Configs, topic: str) -> Iterator[Section]:
    """Tables of a group or a block; of ``fit.vae`` with the stage's own numbers. InputError of an unknown one."""
    first, *rest = topic.split(".")
    known = {*settings.model_fields, *configs.defaults, *(group.strip("+") for group in settings.GROUPS)}
    if first not in known:
        raise InputError(f"--help={topic}: {nearest(first, known)}; known are {', '.join(sorted(known))}")
    field = settings.model_fields.get(first)
    if first in configs.defaults or field is None:
        kind = kind_of(field) if field is not None else None
        yield from group_sections(configs, first, kind.completed if isinstance(kind, Recipe) else ())
        if field is not None and (model := model_in(field)) is not None:
            yield Section(f"{first}: {field.description}", list(block_rows(model, f"{first}.", None, "must be given")))
    elif isinstance(kind_of(field), Recipe):
        value = configs.values.get(first)
        _, comments = comments_of(configs.folder / f"{configs.name}.yaml")
        rows = list(part_rows(value, f"{first}.", comments, (), f"{first}.")) if isinstance(value, Mapping) else []
        rows = rows or [row for row in settings.help_rows() if row[0] == first]
        yield Section(f"{first}: {field.description}", rows)
    elif (model := items_model(field)) is not None and isinstance(values := configs.values.get(first, {}), Mapping):
        stage = rest[0] if rest else "<stage>"
        title = f"{first}.{stage}, of {', '.join(values)}; --help={first}.STAGE shows a stage's own numbers"
        yield Section(title, list(block_rows(model, f"{first}.{stage}.", values.get(stage), _OF_SIZE)))
    elif (model := model_in(field)) is not None:
        values = configs.values.get(first)
        yield Section(f"{first}: {field.description}", list(block_rows(
            model, f"{first}.", values, "must be given" if values is None else _OF_SIZE)))
    else:
        yield Section("", [row for row in settings.help_rows() if row[0] == first])
