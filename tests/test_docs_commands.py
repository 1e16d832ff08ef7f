"""Every command that README, docs/, the heads of conf/ and the programs themselves print is one that its program takes:
settings compose, arguments parse. Every key that a page names is a setting."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vta_sam import settings
from vta_sam.runtime.cluster.launch import SCHEDULERS, combinations
from vta_sam.runtime.typed_settings import Settings
from vta_sam.settings import blocks
from vta_sam.settings.signatures import signature_of

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAM = re.compile(r"(?:experiments|data_prep|benchmarks)/\w+\.py")


def commands(page: Path) -> list[str]:
    """The command lines of a page's code blocks, each with the lines that a backslash continues."""
    found, fenced, begun = [], False, ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        code = line.strip() if (fenced or line.startswith("    ")) and "└─" not in line else ""  # no drawing
        if begun or PROGRAM.search(code.partition(" #")[0]) or re.match(r"make \w", code):
            begun += code.removesuffix("\\").strip() + " "
            if not code.endswith("\\"):
                found.append(begun.strip())
                begun = ""
    return found


def words_of(command: str) -> list[str]:
    """A command's words, without comment, redirection, ellipsis and the brackets of what is optional."""
    words = shlex.split(command, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    return [word[1:-1] if word.startswith("[") and word.endswith("]") and "=" in word else word
            for word in words if word not in ("…", "...")]


def commands_of_comments() -> list[tuple[str, str]]:
    """(file, command line) of the heads of conf/**/*.yaml and of the docstrings of programs."""
    found = []
    for path in sorted((REPOSITORY / "conf").rglob("*.yaml")):
        found += [(path, line[1:].strip()) for line in path.read_text(encoding="utf-8").splitlines()
                  if line.startswith("#   ")]
    for path in sorted([*(REPOSITORY / "experiments").glob("*.py"), *(REPOSITORY / "data_prep").glob("*.py")]):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found += [(path, line.strip()) for line in about.splitlines() if line.strip().startswith("python ")]
    # what follows two spaces is a remark
    return [(path.name, re.split(r" {2,}", line[line.index("python "):])[0])
            for path, line in found if PROGRAM.search(line)]


ALL = [(page.name, command) for page in PAGES for command in commands(page)] + commands_of_comments()


def test_commands_are_found():
    assert len(ALL) > 90, "the search looks in the wrong place"
    assert {name for name, _ in ALL} >= {"generate.yaml", "overfit.yaml", "check.py", "manifest.py",
                                         "listening_test.py"}
    assert {name for name, _ in ALL} >= {"README.md", "cluster.md", "extraction.md", "weights.md", "evaluation.md"}


class Parsed(Exception):
    """Raised in place of the work that follows once a program's arguments are parsed."""


@pytest.fixture
def parse_only(monkeypatch):
    parse_args, parse_known_args = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    within = []  # argparse calls one from the other, and from the parsers of verbs

    def stop_after(parse):
        def parsed(self, *args, **kwargs):
            within.append(self)
            try:
                found = parse(self, *args, **kwargs)
            finally:
                within.pop()
            if within:
                return found
            raise Parsed

        return parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after(parse_args))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop_after(parse_known_args))


@pytest.fixture(scope="module", autouse=True)
def configs():
    GlobalHydra.instance().clear()
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = before


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command[:70]}" for page, command in ALL])
def test_a_command_of_the_documentation_is_taken(page, command, monkeypatch, parse_only):
    words = words_of(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M)
        assert words[1] in targets
        return
    at = next(i for i, word in enumerate(words) if PROGRAM.fullmatch(word))
    script, arguments = REPOSITORY / words[at], words[at + 1:]
    assert script.is_file(), f"{words[at]} doesn't exist"
    if "@program(" in script.read_text(encoding="utf-8"):
        compose_all(script, arguments, complete="…" not in command)
    else:
        parse(script, arguments, monkeypatch)


def compose_all(script: Path, arguments: list[str], complete: bool) -> None:
    """Compose a Hydra program's settings for each combination of swept values, and check them."""
    name = re.search(r'@program\("(\w+)", (\w+)', script.read_text(encoding="utf-8"))
    assert name is not None
    schema: type[Settings] = getattr(settings, name[2])
    if arguments in (["--help"], []):
        arguments = []
    typed = schema.typed_text(swept=True)
    parsed = OverridesParser.create().parse_overrides(typed.taken(arguments))
    for overrides in combinations(parsed):
        config = compose(name[1], list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # ${hydra:…} in a run's name
        del OmegaConf.to_container(config, resolve=False)["hydra"]
        for key in config:
            if key != "hydra":
                OmegaConf.to_container(OmegaConf.create({key: OmegaConf.select(config, key)}), resolve=False)
        if arguments and complete and "${oc.env" not in " ".join(arguments):
            values = {key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                      for key, value in ((str(key), config[key]) for key in config if key not in ("hydra", "launcher"))}
            schema.of(typed.put_back(values))


def parse(script: Path, arguments: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    spec = importlib.util.spec_from_file_location(f"documented_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    with pytest.raises(Parsed):
        module.main()


def test_every_key_that_a_page_names_is_a_setting_of_some_program():
    """``key=`` in a page's text, of settings, groups, the launcher's keys and keys that Hydra adds."""
    groups = {path.relative_to(REPOSITORY / "conf").parts[0] for path in (REPOSITORY / "conf").rglob("*.yaml")}
    # rhythm is a stage of one's own; backbone and version belong to a Metric
    known = {"hydra", "rhythm", "backbone", "version", *(group for group in groups if "." not in group)}
    known |= {name for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Settings)
              for name in kind.model_fields}
    launchers = set[str]().union(*(signature_of(path).types for path in SCHEDULERS.values()))
    inside = {"launcher": launchers, "clip": set(blocks.ClipBlock.model_fields),
              "augment": set(blocks.AugmentBlock.model_fields), "figures": set(blocks.FiguresBlock.model_fields),
              "overfit": set(blocks.OverfitBlock.model_fields), "hydra": {"searchpath"}}
    wrong, seen = [], 0
    for page in PAGES:
        for text in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for word in text.split() if not re.search(r"""[(]|=(True|False|")""", text) else ():  # Python
                if (key := re.match(r"""^["'[]{0,2}[+~]{0,2}([a-z_][\w.]*)(?:[/@]\w+)?=""", word)) is None:
                    continue
                seen += 1
                first, *rest = key[1].split(".")
                if first not in known or rest and first in inside and rest[0] not in inside[first]:
                    wrong.append(f"{page.name}: {word}")
    assert wrong == [] and seen > 150
