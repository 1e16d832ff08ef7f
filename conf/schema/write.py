"""Write docs/settings.md, and the JSON schemas in this folder with which editors complete and check conf/**/*.yaml.

    make schemas          # or: python conf/schema/write.py

Each yaml names its schema in a line ``# yaml-language-server: $schema=…``, which VS Code's YAML extension, Neovim's and
others read. The schemas follow from vta_sam/settings/ and from the constructors of the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vta_sam.checkpoints.parts import TARGET
from vta_sam.runtime.files import write_text
from vta_sam.runtime.typed_settings import Section, Settings, kind_of
from vta_sam.settings import (
    CheckSettings, CompareSettings, EncodeSettings, EvaluateSettings, ExtractSettings, GenerateSettings,
    MeasureSettings, MetersSettings, StudySettings, SynthesizeSettings, TrainSettings, TrainTinySettings,
)
from vta_sam.settings.blocks import Recipe, StudyBlock, SweepBlock
from vta_sam.settings.pages import (
    BLOCKS, Configs, choice_of, group_sections, help_sections, is_plain, path_of, topic_sections,
)
from vta_sam.settings.signatures import signature_of
from vta_sam.settings.tools import LISTENING_TEST, MANIFEST, SWEEP, WEIGHTS

CONF = Path(__file__).resolve().parents[1]
PAGE = CONF.parent / "docs" / "settings.md"
WHOLE_CONFIGS = ("size", "exp", "ablation", "strategy")  # groups whose files hold keys of train.yaml
# what Hydra or a dataset puts in a value's place
LATER: dict[str, Any] = {"type": "string", "pattern": r"\$\{|^(\?\?\?|from_data)$"}


# program ⇒ its class and its config; of programs with verbs a class a verb
PROGRAMS: dict[str, tuple[type[Settings], str]] = {
    "data_prep/synthesize.py": (SynthesizeSettings, "synthesize"),
    "data_prep/extract.py": (ExtractSettings, "extract"),
    "data_prep/check.py": (CheckSettings, "check"),
    "data_prep/encode_latents.py": (EncodeSettings, "encode_latents"),
    "experiments/train.py": (TrainSettings, "train"),
    "experiments/generate.py": (GenerateSettings, "generate"),
    "experiments/evaluate.py": (EvaluateSettings, "evaluate"),
    "experiments/compare.py": (CompareSettings, "compare"),
    "experiments/meters.py": (MetersSettings, "meters"),
    "experiments/study.py": (StudySettings, "study"),
    "experiments/train_tiny.py": (TrainTinySettings, "train_tiny"),
}
TOOLS = {"data_prep/manifest.py": MANIFEST, "data_prep/weights.py": WEIGHTS,
         "experiments/listening_test.py": LISTENING_TEST, "experiments/sweep.py": SWEEP}


def schema_name(path: Path) -> str:
    """The schema of a file of conf/. path: within conf/."""
    if len(path.parts) == 1:
        return path.stem
    group = path.parts[0]
    return "train" if group in WHOLE_CONFIGS else "studies" if group == "study" else group


def schemas() -> dict[str, dict[str, Any]]:
    """{name: JSON schema} for all files of conf/."""
    found = {name: of_program(settings, name) for settings, name in PROGRAMS.values()}
    found["evaluation"] = of_class(MeasureSettings)
    found["studies"] = of_class(StudyBlock)
    found["sweep"] = of_class(SweepBlock)
    groups = {path.parent.relative_to(CONF).parts[0] for path in CONF.rglob("*.yaml") if path.parent != CONF}
    return found | {group: of_group(group) for group in sorted(groups - {*WHOLE_CONFIGS, *found})}


_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def of_class(model: type) -> dict[str, Any]:
    """Of a block or of settings without groups."""
    return _for_editors(model.model_json_schema(by_alias=True))  # type: ignore[attr-defined]


def of_program(settings: type[Settings], name: str) -> dict[str, Any]:
    """Of a program's config, and of every file that holds a part of it: nothing has to be there."""
    schema = of_class(settings)
    known = schema["properties"]
    for key, field in settings.model_fields.items():
        if isinstance(kind_of(field), Recipe):
            about = {"description": field.description}
            known[key] = {"allOf": [{"$ref": f"{key}.json"}], **about} if (CONF / key).is_dir() else about
    known |= {"defaults": {"type": "array"}, "hydra": {"type": "object"}}
    known |= {group: known.get(group, {}) for group in Configs(CONF, name).defaults}
    return schema


def of_group(group: str) -> dict[str, Any]:
    """Of the files of a group, each of which holds a part's recipe, or a list of them."""
    parts: dict[str, dict[str, Any]] = {}
    for choice in Configs(CONF, "train").choices(group):
        content = choice_of(CONF / group, choice)[2]
        if TARGET in content:
            parts[content[TARGET]] = of_part(content)
    if not parts:
        return {"$schema": _DRAFT, "type": ["array", "object"], "items": {"type": "object", "required": [TARGET]}}
    own = [{"if": {"type": "object", "properties": {TARGET: {"const": target}}, "required": [TARGET]}, "then": part}
           for target, part in parts.items()]
    target = {"type": "string", "examples": list(parts),
              "description": "name of a part, or dotted path of a class of one's own"}
    return {"$schema": _DRAFT, "type": ["object", "null", "string"],
            "properties": {**_every_argument(parts.values()), TARGET: target}, "allOf": own}


def _every_argument(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Arguments of several parts, for a file that changes some of whichever part is chosen."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, argument in part["properties"].items():
            if "properties" in argument:
                before = found.get(name, {}).get("properties", {})
                found[name] = {"type": "object", "properties": {**_every_argument([argument]), **before}}
            else:
                found.setdefault(name, argument)
    return found


def of_part(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments of a part, and of the parts that it is given."""
    told = signature_of(path_of(str(recipe[TARGET])))
    if told is None:
        return {"type": "object", "properties": {}}
    known = of_class(told.schema)["properties"]
    for name, value in recipe.items():
        if isinstance(value, Mapping) and TARGET in value:
            known[name] = of_part(value)
    return {"type": "object", "properties": {**known, TARGET: {"type": "string"}, "defaults": {"type": "array"}},
            "additionalProperties": told.takes_more}


_DRAFT = "http://json-schema.org/draft-07/schema#"


def _for_editors(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of pydantic's, where nothing has to be given and a value may come later."""
    definitions = schema.pop("$defs", {})
    made = {"$schema": _DRAFT, **_loosened(schema)}
    if definitions:
        made["definitions"] = {name: _loosened(item) for name, item in definitions.items()}
    return made


def _loosened(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_loosened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {_LIMITS.get(key, key): value if key in ("default", "enum", "const", "examples") else
            {name: _loosened(item) for name, item in value.items()} if key == "properties" else
            value.replace("#/$defs/", "#/definitions/") if key == "$ref" else _loosened(value)
            for key, value in schema.items() if key not in ("required", "title", "format") and value != ""}
    mapping = made.get("type") == "object" and "properties" not in made
    if mapping or made.get("type") in ("integer", "number", "boolean", "array") or "enum" in made or "const" in made:
        about: dict[Any, Any] = {key: made.pop(key) for key in ("description", "default") if key in made}
        # a single name stands for a list of one
        made = {"anyOf": [made, {"type": "string"} if made.get("type") == "array" else LATER], **about}
    return made


_ABOUT = """# Settings of every program

`make schemas` writes this page from the classes in `vta_sam/settings/`, the constructors of the parts and the comments
of `conf/`. `--help` of a program shows its table, `--help=NAME` that of a group or a block. Everything is checked
before torch is imported, and all faults of a command line are said at once.

`GROUP=NAME` takes a file of `conf/GROUP/`, `+GROUP=NAME` adds one; `KEY=VALUE` and `BLOCK.KEY=VALUE` set a value. A
switch is true, false, yes, no, on, off, 1 or 0; a single name is a list of one. Texts and paths arrive as typed.
`launcher=slurm` makes a job of any of these commands ([cluster.md](cluster.md)).

Editors that know JSON schemas (VS Code with its YAML extension, Neovim, …) complete and check the files of `conf/`:
each names its schema, in `conf/schema/`, in one of its first lines.
"""


def settings_page(conf: Path) -> str:
    """docs/settings.md."""
    lines = [_ABOUT]
    groups: dict[str, tuple[Configs, Iterable[str]]] = {}
    for script, (settings, name) in PROGRAMS.items():
        configs = Configs(conf, name)
        lines.append(f"## {script}\n")
        for section in help_sections(settings, configs, ""):
            if section.headings != BLOCKS:
                lines.append(_markdown(section))
        for block in settings.model_fields:
            if not is_plain(settings, block) and block not in configs.defaults:
                lines += map(_markdown, topic_sections(settings, configs, block))
        for group in (*configs.defaults, *(word.strip("+") for word in settings.GROUPS)):
            kind = kind_of(settings.model_fields[group]) if group in settings.model_fields else None
            if group not in ("evaluation", "study"):
                groups.setdefault(group, (configs, kind.completed if isinstance(kind, Recipe) else ()))
    for script, verbs in TOOLS.items():
        for verb, options in verbs.items():
            lines.append(f"## {script} {verb}\n\n{options.__doc__}\n")
            lines.append(_markdown(Section("", list(options.help_rows()))))
    lines.append("## Choices of groups\n")
    for group, (configs, completed) in groups.items():
        lines += map(_markdown, group_sections(configs, group, completed))
    return "\n".join(lines).rstrip() + "\n"


def _markdown(section: Section) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rows = [[f"`{key}`", *(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)]
            for key, *cells in section.rows]
    shown_ones = [i for i in range(len(section.headings)) if i == 0 or any(row[i] for row in rows)]
    table = [[cells[i] for i in shown_ones] for cells in (section.headings, ["---"] * len(section.headings), *rows)]
    lines = list(map(line, table)) if rows else []
    title = [f"**{section.title.replace('<', '&lt;')}**", ""] if section.title else []
    return "\n".join([*title, *lines, ""])


def files() -> Iterator[tuple[Path, str]]:
    """(path, content) of all that the command writes."""
    yield PAGE, settings_page(CONF)
    for name, schema in schemas().items():
        yield CONF / "schema" / f"{name}.json", json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path, content in files():
        write_text(path, content)
        print(path.relative_to(CONF.parent))
