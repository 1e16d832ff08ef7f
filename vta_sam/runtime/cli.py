"""Start and end of an entry script. It runs here or as a job of a cluster, and ends with a sentence and an exit status,
not with a traceback, where a user can mend the error."""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, NoReturn, ParamSpec, TypeVar

from .errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


# the settings that name a training run's folder
RUN_FOLDER = ("runs", "exp", "seed", "name")


def program(config_name: str, writes_to: tuple[str, ...] = (), shards: Callable[[Mapping[str, Any]], int] | None = None,
            ) -> Callable[[Callable[[Any], object]], Callable[[], None]]:
    """Decorate the main function of a Hydra program of experiments/ or data_prep/, with the config
    conf/<config_name>.yaml.

    writes_to, shards: see :class:`~.cluster.launch.Program`.

    With ``launcher=slurm`` on the command line the same command becomes a job (vta_sam/runtime/cluster), and nothing is
    done here. Errors are printed as by :func:`run`.

        @program("extract")
        def main(config): ...
    """

    def decorate(work: Callable[[Any], object]) -> Callable[[], None]:
        import hydra

        @functools.wraps(work)
        def here(config: Any) -> object:
            from .cluster.launch import refuse_launcher_of_a_file

            refuse_launcher_of_a_file(config)
            return work(config)

        started = hydra.main(version_base="1.3", config_path="../conf", config_name=config_name)(run(here))

        @functools.wraps(work)
        def main() -> None:
            from .cluster.launch import Program, asks_for_launcher, launch

            if asks_for_launcher(sys.argv[1:]):
                script = Path(work.__code__.co_filename)
                run(launch)(Program(script, config_name, writes_to, shards), sys.argv[1:])
            else:
                started()

        return main

    return decorate


def run(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate the function that does an entry script's work; *below* ``hydra.main``, which would print a traceback.

    InputError ⇒ ``error: …`` on stderr and exit status 2. Ctrl-C ⇒ status 130, as a shell expects. A reader that closed
    the pipe (``… | head``) ⇒ status 141. Every other exception is a fault of the program and keeps its traceback.

        @run
        def main(): ...
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
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


def quote_text(arguments: Sequence[str], keys: Collection[str]) -> list[str]:
    """``key=value`` arguments whose key is in ``keys`` ⇒ the same with the value quoted for Hydra.

    A caption with a comma or a file name with a parenthesis is otherwise a syntax error there. Null, empty
    text, quoted text and lists stay as they are.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys and value not in ("", "null") and value[0] not in "'\"[":
            # Hydra's grammar: backslashes count only where a quote follows them
            value = re.sub(r"(\\*)'", r"\1\1\\'", value)
            value = re.sub(r"(\\+)$", r"\1\1", value)
            argument = f"{key}='{value}'"
        quoted.append(argument)
    return quoted
