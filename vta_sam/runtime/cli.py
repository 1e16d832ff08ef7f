"""Start and end of an entry script. It runs here or as a job of a cluster, and ends with a sentence and an exit status,
not with a traceback, where a user can mend the error."""

from __future__ import annotations

import argparse
import functools
import io
import re
import signal
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Callable, ClassVar, Iterator, NoReturn, ParamSpec, Self, TypeVar

from pydantic import Field
from pydantic.fields import FieldInfo

from .errors import InputError
from .files import write_fault
from .typed_settings import Keys, Settings, Switch, choices_of, kind_of, nearest, type_words, unknown_key
from .typed_text import TypedText

P = ParamSpec("P")
R = TypeVar("R")


def program(config_name: str, settings: type[Settings], writes_to: tuple[str, ...] = (),
            shards: Callable[[Mapping[str, Any]], int] | None = None,
            ) -> Callable[[Callable[[Any], object]], Callable[[], None]]:
    """Decorate the main function of a Hydra program of experiments/ or data_prep/, with the config
    conf/<config_name>.yaml. It gets the checked settings.

    Args:
        config_name: of the config.
        settings: the program's class in vta_sam/settings/.
        writes_to: see :class:`~.cluster.launch.Program`.
        shards: likewise.

    With ``launcher=slurm`` on the command line the same command becomes a job (vta_sam/runtime/cluster), and nothing is
    done here. Errors are printed as by :func:`run`.

        @program("extract", ExtractSettings)
        def main(settings): ...
    """

    def decorate(work: Callable[[Any], object]) -> Callable[[], None]:
        @functools.wraps(work)
        def main() -> None:
            arguments = sys.argv[1:]
            script = Path(work.__code__.co_filename)
            closed = settings.model_config.get("extra") == "forbid"
            if (topic := _help_topic(arguments)) is not None:
                return run(print_help)(settings, script, config_name, topic)
            known = (*settings.model_fields, *_GROUPS, *(() if closed else config_keys(script, config_name)))
            run(refuse_unknown)(arguments, known, closed)
            run(start if shards is None else start_held)(script, arguments)

        def start(script: Path, arguments: Sequence[str]) -> None:
            from .cluster.launch import Program, asks_for_launcher, check, launch

            started = Program(script, config_name, writes_to, shards, settings)
            if asks_for_launcher(arguments):
                return launch(started, arguments)
            import hydra

            typed = settings.typed_text(swept=bool({"-m", "--multirun"} & set(arguments)))
            check(started, arguments, typed)

            @functools.wraps(work)
            def here(config: Any) -> object:
                from .cluster.launch import refuse_launcher_of_a_file

                sys.argv[1:] = arguments
                refuse_launcher_of_a_file(config)
                checked = settings.of(plain_values(config, typed))
                if shards is None:
                    return work(checked)
                from .cluster.preemption import ends_at_once

                with ends_at_once():
                    return work(checked)

            sys.argv[1:] = typed.taken(arguments)
            hydra.main(version_base="1.3", config_path="../conf", config_name=config_name)(run(here))()

        def start_held(script: Path, arguments: Sequence[str]) -> None:
            with _held_back(signal.SIGUSR1):
                start(script, arguments)

        return main

    return decorate


@contextmanager
def _held_back(number: int) -> Iterator[None]:
    """Inside, a signal waits until somebody unblocks it: a program that goes back into its queue at a request is not
    ready for one while it imports torch."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def plain_values(config: Any, typed: TypedText) -> dict[str, Any]:
    """The values of a composed config, without the launcher's, with texts as they were typed.

    Raises:
        InputError: a value can't be resolved, or is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(" ".join(str(error).partition("object_type=")[0].split())) from error
    assert isinstance(values, dict)
    return typed.put_back({key: value for key, value in values.items() if key not in ("launcher", "hydra")})


_GROUPS = ("launcher", "hydra", "evaluation")  # what a command line may name beside a program's own settings
_HYDRAS = re.compile(r"-(m|c|i|p|cn|cp|cd|sc|h)|--(multirun|cfg|info|resolve|package|run|config-(name|path|dir)|"
                     r"shell-completion|hydra-help|version|experimental-rerun|help)(=.*)?")


def config_keys(script: Path, config_name: str) -> set[str]:
    """The first words of all keys that a program's configs have: of the config itself, of its groups and in them."""
    import yaml

    conf = script.resolve().parents[1] / "conf"
    files = [conf / f"{config_name}.yaml", *(conf / "size").glob("*.yaml"), *(conf / "exp").glob("*.yaml")]
    keys = {str(key) for path in files for key in yaml.safe_load(path.read_text(encoding="utf-8")) or ()}
    return keys | {path.name for path in conf.iterdir() if path.is_dir() and path.name != "schema"}


def refuse_unknown(arguments: Sequence[str], known: Collection[str], closed: bool) -> None:
    """Raise InputError where an argument is no KEY=VALUE, or its key no setting.

    Args:
        arguments: a command line.
        known: first words of keys.
        closed: whether ``+KEY=VALUE`` can add no key either.
    """
    faults, after_flag = [], False
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        flag, taken_by_flag = argument.startswith("-"), after_flag
        after_flag = flag and _HYDRAS.fullmatch(argument) is not None and not equals
        root = key.lstrip("+~-").partition(".")[0].partition("@")[0].partition("/")[0]
        if flag and not _HYDRAS.fullmatch(argument):
            faults.append(f"{key}: settings are given as {root}=VALUE" if root in known else
                          f"{key}: settings are given as KEY=VALUE; --help lists them")
        elif not flag and not equals and not taken_by_flag and not argument.startswith("~"):
            faults.append(f"{argument}: expected KEY=VALUE")
        elif not flag and equals and root not in known and (closed or key[0] not in "+~"):
            faults.append(unknown_key(root, known))
    if faults:
        raise InputError("; ".join(faults))


def _help_topic(arguments: Sequence[str]) -> str | None:
    """What ``--help=TOPIC`` or ``--help TOPIC`` asks for; "": the program; None: no help is asked for."""
    for word, following in zip(arguments, [*arguments[1:], ""]):
        if word in ("--help", "-h"):
            return following if following.partition(".")[0].isidentifier() else ""
        if word.startswith("--help="):
            return word.partition("=")[2]
    return None


def print_help(settings: type[Settings], script: Path, config_name: str, topic: str = "") -> None:
    """Print what the program is, how it is called, and its settings; of a topic, its settings alone."""
    import ast

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    folder = script.resolve().parent.name
    if not topic:
        about = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        console.print(about, soft_wrap=True, markup=False)
        console.print(f"\npython {folder}/{script.name} KEY=VALUE …", soft_wrap=True, markup=False)
    for title, rows, headings in settings.help_sections(script.resolve().parents[1] / "conf", config_name, topic):
        if title:
            console.print(f"\n{title}", soft_wrap=True, markup=False)
        table = Table(box=None, pad_edge=False, show_edge=False)
        for heading in headings:
            table.add_column(heading, overflow="fold", no_wrap=heading == headings[0])
        for row in rows:
            table.add_row(*map(escape, row))
        if rows:
            console.print(table)
    if not topic:
        console.print("\n--help=NAME shows a group's or a block's settings, --help=all everything. launcher=slurm "
                      "makes the command a job (docs/cluster.md). --cfg job prints all values; they come from "
                      f"conf/{config_name}.yaml.", soft_wrap=True, markup=False)


# ---------------------------------------------------------------------- programs with verbs and options

class Options(Settings):
    """The options of a program, or of one of its verbs, on the command line ``--per-rater 3``."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # fields that are given by their place
    METAVARS: ClassVar[Mapping[str, str]] = {}  # words for a value in the help
    REST: ClassVar[str | None] = None  # what further words are; None: there may be none
    rest: Annotated[tuple[str, ...], Field(exclude=True)] = ()

    @classmethod
    def given(cls, key: str, value: Any = "") -> str:
        name, _, _ = key.partition(".")
        spelled = cls.metavar(name) if name in cls.POSITIONAL else f"--{name.replace('_', '-')}"
        return f"{spelled} {value}".rstrip()

    @classmethod
    def metavar(cls, name: str) -> str:
        """The word for a value."""
        words = {"whole number": "N", "number": "X"}
        return cls.METAVARS.get(name) or words.get(type_words(cls.model_fields[name]).partition(" of")[0], name.upper())

    @classmethod
    def of_words(cls, values: Mapping[str, Any]) -> Self:
        """The options of a command line, whose numbers are words still. Raises InputError of all faults."""
        return cls.of({name: _read_number(value) if (kind := kind_of(cls.model_fields[name])) and not kind.text
                       and kind.name.endswith("number") else value for name, value in values.items()})

    @classmethod
    def help_rows(cls) -> Iterator[tuple[str, str, str, str]]:
        for name, words, default, meaning in super().help_rows():
            if name != "rest":
                yield cls.given(name), words, default, meaning


def _read_number(word: Any) -> Any:
    for read in (int, float):
        try:
            return read(word)
        except (TypeError, ValueError):
            continue
    return word


def parsed(description: str, verbs: Mapping[str, type[Options]]) -> tuple[str, Any]:
    """The verb and the checked options of this process's command line; ``--help`` is answered.

    Args:
        description: of the program; its first lines are shown above the verbs.
        verbs: {verb: class of its options}, whose docstring is its help.

    Raises:
        InputError: of all faults.
    """
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(description=description, formatter_class=raw)
    below = top.add_subparsers(dest="verb", metavar=" | ".join(verbs))
    for verb, options in verbs.items():
        _add_options(below.add_parser(verb, help=options.__doc__, description=options.__doc__), options)
    top.error = _refuse_words  # type: ignore[method-assign]
    for made in below.choices.values():
        made.error = _refuse_words  # type: ignore[method-assign]
    known, further = top.parse_known_args()
    given = vars(known)
    if (verb := given.pop("verb")) is None:
        raise InputError(f"name what to do: {', '.join(verbs)}; --help tells more")
    options = verbs[verb]
    names = [options.given(name).lstrip("-") for name in options.model_fields if name not in options.POSITIONAL]
    strange = [word.partition("=")[0] for word in further if options.REST is None or word.startswith("-")]
    faults = [f"there is no option {word}; {nearest(word.lstrip('-'), names).replace('is ', 'is --', 1)}"
              if word.startswith("-") else f"{word}: expected no further word" for word in strange]
    try:
        found = options.of_words(given | ({"rest": tuple(further)} if options.REST else {}))
    except InputError as error:
        raise InputError("; ".join([*faults, str(error)])) from None
    if faults:
        raise InputError("; ".join(faults))
    return verb, found


def _refuse_words(message: str) -> NoReturn:
    raise InputError(f"{message}; --help tells more")


def _add_options(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """An argument a field. All may be left out, so that what is missing is said with the other faults."""
    if options.REST:
        parser.usage = f"%(prog)s [OPTIONS] {' '.join(map(options.metavar, options.POSITIONAL))} [{options.REST} …]"
    for name, field in options.model_fields.items():
        if name == "rest":
            continue
        several = "list" in type_words(field) or kind_of(field) is kind_of(Keys)
        told: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help_of(field)}
        if name in options.POSITIONAL:
            parser.add_argument(name, nargs="*" if several else "?", metavar=options.metavar(name), **told)
        elif kind_of(field) is kind_of(Switch):
            parser.add_argument(options.given(name), dest=name, action="store_true", **told)
        else:
            choices = choices_of(field)
            parser.add_argument(options.given(name), dest=name, action="append" if several else "store",
                                metavar="{" + ",".join(map(str, choices)) + "}" if choices else options.metavar(name),
                                **told)


def _help_of(field: FieldInfo) -> str:
    default = "must be given" if field.is_required() else field.default
    shown = "" if default in (None, False, (), []) else f" ({default})"
    return f"{field.description}{shown}".replace("%", "%%")


def run(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate the function that does an entry script's work; *below* ``hydra.main``, which would print a traceback.

    InputError ⇒ ``error: …`` on stderr and exit status 2. Ctrl-C ⇒ status 130, as a shell expects. A reader that closed
    the pipe (``… | head``) ⇒ status 141. Every other exception is a fault of the program and keeps its traceback.

        @run
        def main(): ...
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names of files that are no UTF-8
        try:
            with _plain_warnings():
                return main(*args, **kwargs)
        except InputError as error:
            _refuse(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()  # keeps the interpreter from complaining about the same pipe once more
            sys.exit(141)
        except OSError as error:
            if sentence := write_fault(error):
                _refuse(InputError(sentence))
            raise
        except Exception as error:
            # building a part by its recipe wraps a constructor's error
            if isinstance(error.__cause__, InputError) and type(error).__module__.partition(".")[0] == "hydra":
                _refuse(error.__cause__)
            raise

    return guarded


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print this project's warnings without the line of code that raises them, which is of no use to users."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None,
              ) -> str:
        if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
            return f"warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _refuse(error: InputError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def check_number(name: str, value: Any, low: float, high: float = float("inf"), whole: bool = False) -> None:
    """Raise InputError unless value is a number (an integer, where ``whole``) in [low, high]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or whole and not isinstance(value, int) or not low <= value <= high:
        between = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise InputError(f"{name}={value}: expected {'a whole number' if whole else 'a number'} {between}")
