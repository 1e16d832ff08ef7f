"""A command line that says ``launcher=slurm`` or ``launcher=ray`` becomes a job in place of this process.

Its tasks are composed and checked before anything is submitted. docs/cluster.md is the user's view.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from ..errors import InputError
from ..typed_settings import Settings
from ..typed_text import TypedText
from .scheduler import Job, Scheduler

GROUP = "launcher"
# `_target_` of conf/launcher/*.yaml ⇒ where it lives
SCHEDULERS = {"slurm": "vta_sam.runtime.cluster.slurm.Slurm", "ray": "vta_sam.runtime.cluster.ray_tasks.Ray"}


@dataclass(frozen=True, eq=False)
class Program:
    """An entry script that can run as a job.

    Args:
        script: its file.
        config_name: of its config in conf/, the folder beside the script's own.
        writes_to: keys of its settings that together name the one place it writes to; two tasks must not share one.
        shards: settings ⇒ the shards that it has to make, for a program that parts its work by rank and world.
        settings: class that checks the settings of each task, and knows which keys hold texts.
    """

    script: Path
    config_name: str
    writes_to: tuple[str, ...] = ()
    shards: Callable[[Mapping[str, Any]], int] | None = None
    settings: type[Settings] | None = None

    @cached_property
    def typed(self) -> TypedText:
        """Texts of the command line, which stand as words in what Hydra composes."""
        return self.settings.typed_text(swept=True) if self.settings else TypedText(())

    @property
    def conf(self) -> Path:
        return self.script.resolve().parents[1] / "conf"


@dataclass(frozen=True)
class Task:
    """One run of a program. settings: its config, resolved; None where only the job's environment completes it."""

    overrides: tuple[str, ...]
    settings: dict[str, Any] | None


@contextmanager
def _hydra(program: Program) -> Iterator[None]:
    """Hydra's compose API on the program's configs; what Hydra refuses is said in a sentence."""
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(program.conf), version_base="1.3", job_name=program.script.stem):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, InputError):  # of a setting of the launcher, wrapped by Hydra
            raise error.__cause__ from error
        raise InputError(_sentence(error)) from error
    finally:
        HydraConfig.instance().cfg = before


def _sentence(error: Exception) -> str:
    """Hydra's and OmegaConf's words in one line, with the override that they are about."""
    parts = [f"{error.override}:"] if isinstance(error, OverrideParseException) else []
    for cause in (error, error.__cause__):
        words = str(cause or "").partition("Config search path:")[0].splitlines()
        parts += [line.strip() for line in words if line.strip() and not line.strip().startswith("object_type=")]
    return " ".join(parts)


def plan(program: Program, overrides: Sequence[str]) -> tuple[Scheduler, list[Task]]:
    """A command line's overrides, with ``launcher=…`` among them ⇒ the launcher's settings, and the tasks in the order
    of Hydra's multirun. Raises InputError with Hydra's words where one of them can't be composed."""
    with _hydra(program):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(list(overrides))
        # hydra.searchpath may be where the launcher's own block is
        scheduler = _launcher(program, [word for word in parsed if _of_launcher(word) or word.is_hydra_override()])
        own = [override for override in parsed if not _of_launcher(override)]
        tasks = [Task(words, _settings(program, words)) for words in combinations(own)]
    if any(_is_on(task.settings.get("plan")) for task in tasks if task.settings):
        raise InputError("plan=true is answered here, not by a job: leave out launcher=, or give launcher.dry_run=true "
                         "in place of plan=, which shows the job")
    _refuse_one_place_for_two(program, tasks)
    if scheduler.shards_per_job is not None:
        return scheduler, _parted(program, scheduler, tasks, own)
    return scheduler, tasks


def _is_on(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "on", "1")


def combinations(overrides: Sequence[Override]) -> list[tuple[str, ...]]:
    """Each combination of swept values, the last override's changing fastest. An override that is given twice counts
    where it stood first, with the value that came last, as in Hydra's own sweeper."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key, line = override.get_key_element(), override.input_line
        if not override.is_sweep_override():
            assert line is not None  # it was parsed
            choices[key] = [line]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise InputError(f"{line}: an array needs values that can be counted, such as {key}=1,2,3")
    return list(product(*choices.values()))


def _of_launcher(override: Override) -> bool:
    return override.key_or_group.partition(".")[0] == GROUP


def _launcher(program: Program, overrides: Sequence[Override]) -> Scheduler:
    for override in overrides:
        if override.is_sweep_override() and _of_launcher(override):
            raise InputError(f"{override.input_line}: the launcher takes one value; quote one that has a comma "
                             f"twice: \"{override.get_key_element()}='a,b'\"")
    config = compose(program.config_name, [str(override.input_line) for override in overrides])
    target = config[GROUP].get("_target_")
    with open_dict(config):
        config[GROUP]["_target_"] = SCHEDULERS.get(target, target)
    made = instantiate(config[GROUP], _convert_="all")
    if not isinstance(made, Scheduler):
        raise InputError(f"{GROUP}: {target} is no Scheduler (vta_sam/runtime/cluster/scheduler.py)")
    return made


_CHECKED = 64  # runs of a sweep that are checked before the first of them begins, 0.2 s each; the rest as they begin


def check(program: Program, arguments: Sequence[str], typed: TypedText) -> None:
    """Compose and check all that a command line asks for, before any of it is begun.

    Args:
        program: as for :func:`launch`.
        arguments: the command line, as it was typed.
        typed: of its texts.

    Raises:
        InputError: of all faults of the first of its runs that has some.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    if set(flags) - _SWEEPS:
        return  # Hydra's own affair: it answers, or takes its configs from elsewhere
    overrides = [argument for argument in typed.taken(arguments) if argument not in flags]
    with _hydra(program):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(overrides)
        countable = all(word.is_discrete_sweep() for word in parsed if word.is_sweep_override())
        if flags:
            runs = combinations(parsed)[:_CHECKED] if countable else []
        else:
            runs = [tuple(overrides)]
        for words in runs:
            _settings(program, words, typed)


def _composed(program: Program, overrides: Sequence[str]) -> DictConfig:
    config = compose(program.config_name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # for ${hydra:…} in a run's name
    with open_dict(config):
        del config["hydra"]
    return config


def _checked_instead(program: Program, overrides: Sequence[str], typed: TypedText) -> None:
    """Where Hydra has refused a command line for one key that its configs lack: raise InputError with all its faults,
    among them the nearest keys."""
    forced = [f"++{word}" if re.match(r"[\w.]*\.[\w.]*=", word) else word for word in overrides]
    if program.settings is not None and forced != list(overrides):
        with suppress(HydraException, OmegaConfBaseException):
            _resolved(program, _composed(program, forced), typed)


def _settings(program: Program, overrides: Sequence[str], typed: TypedText | None = None) -> dict[str, Any] | None:
    typed = typed or program.typed
    try:
        config = _composed(program, overrides)
    except HydraException:
        _checked_instead(program, overrides, typed)
        raise
    return _resolved(program, config, typed)


def _resolved(program: Program, config: DictConfig, typed: TypedText) -> dict[str, Any] | None:
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise InputError("; ".join(f"{key}= is missing" for key in missing)
                             + f". --help={missing[0].partition('.')[0]} says what it is")
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationResolutionError as error:
        if "Environment variable" in str(error):  # launcher.setup may set it
            return None
        raise
    assert isinstance(settings, dict)
    refuse_launcher_of_a_file(settings)
    found = typed.put_back({str(key): value for key, value in settings.items()})
    if program.settings is not None:
        program.settings.of({key: value for key, value in found.items() if key != GROUP})
    return found


def _parted(program: Program, scheduler: Scheduler, tasks: Sequence[Task], overrides: Sequence[Override]) -> list[Task]:
    assert scheduler.shards_per_job is not None
    if program.shards is None:
        raise InputError(f"launcher.shards_per_job={scheduler.shards_per_job} is for programs that part their work by "
                         f"rank and world, which {program.script.name} doesn't; leave it out here")
    given = [word.input_line for word in overrides if word.key_or_group in ("rank", "world", "consecutive")]
    if given:
        raise InputError(f"{given[0]}: with launcher.shards_per_job each task gets its share; leave it out")
    if scheduler.processes > 1:
        raise InputError(f"launcher.shards_per_job makes an array of one process a job, but nodes × tasks_per_node is "
                         f"{scheduler.processes}; leave it out, and the processes of one job part the work themselves")
    divided = []
    for task in tasks:
        if task.settings is None:
            raise InputError("launcher.shards_per_job has to know the shards now; a variable of the environment that a "
                             "setting names is not set here")
        world = math.ceil(program.shards(task.settings) / scheduler.shards_per_job)
        divided += [Task((*task.overrides, f"rank={rank}", f"world={world}", "consecutive=true"), task.settings)
                    for rank in range(world)]
    return divided


def _refuse_one_place_for_two(program: Program, tasks: Sequence[Task]) -> None:
    keys = program.writes_to
    seen: dict[tuple, Task] = {}
    for task in tasks if keys else ():
        if task.settings is None:
            continue
        place = tuple(task.settings.get(key) for key in keys)
        if place in seen:
            way = "name='${hydra:job.override_dirname}'" if "name" in keys else "a command each, with its own out="
            first, second = (" ".join(program.typed.put_back(each.overrides)) for each in (seen[place], task))
            raise InputError(f"two tasks would write to one place: {first} and {second}. Tell them apart: {way}")
        seen[place] = task


_ANSWERS = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
_SWEEPS = {"--multirun", "-m"}


def asks_for_launcher(arguments: Sequence[str]) -> bool:
    """Whether a command line chooses a launcher; ``--help`` and what else Hydra answers at once is left to it."""
    if any(argument.partition("=")[0] in _ANSWERS for argument in arguments):
        return False
    chosen = [value for key, _, value in (argument.partition("=") for argument in arguments) if key == GROUP]
    return bool(chosen) and chosen[-1] != "null"


def launch(program: Program, arguments: Sequence[str]) -> None:
    """Submit a program with its arguments, ``launcher=…`` among them. Comma lists make an array, in the order of
    Hydra's multirun. Raises InputError where a config can't be composed, or sbatch refuses."""
    overrides = [argument for argument in arguments if argument not in _SWEEPS]
    flags = [argument for argument in overrides if argument.startswith("-")]
    if flags:
        raise InputError(f"{flags[0]} doesn't go with {GROUP}=, which takes overrides alone; "
                         "hydra.searchpath=[file://FOLDER] names further folders of configs")
    scheduler, tasks = plan(program, program.typed.taken(overrides))
    script = program.script.resolve()
    folder = Path.cwd()
    words = [_python(scheduler), str(script.relative_to(folder) if script.is_relative_to(folder) else script)]
    commands = [[*words, *program.typed.put_back(task.overrides)] for task in tasks]
    scheduler.submit(Job(_name(program, tasks), folder, commands))


def launch_agents(program: Program, sweep_id: str, agents: int, runs_each: int, overrides: Sequence[str]) -> None:
    """Submit an array of wandb agents, each of which ends after ``runs_each`` runs of the sweep. program: whose config
    has the launcher; overrides: of the launcher alone."""
    for name, value in (("count", agents), ("runs-each", runs_each)):
        if value < 1:
            raise InputError(f"--{name} {value}: expected a whole number from 1 on")
    strange = [override for override in overrides
               if not override.startswith((f"{GROUP}.", f"{GROUP}=", "hydra.searchpath="))]
    if strange:
        raise InputError(f"{strange[0]}: agents get their settings from the sweep; only {GROUP}.KEY=… can be given")
    scheduler, _ = plan(program, with_launcher(overrides))
    # an agent that doesn't pass signals on would end by the one before the time limit, and its run with it
    command = [_python(scheduler), "-m", "wandb", "agent", "--forward-signals", "--count", str(runs_each), sweep_id]
    scheduler.submit(Job("wandb-agent", Path.cwd(), [command] * agents))


def with_launcher(overrides: Sequence[str]) -> list[str]:
    """The overrides, with ``launcher=slurm`` where they choose none."""
    return [*([] if asks_for_launcher(overrides) else [f"{GROUP}=slurm"]), *overrides]


def _python(scheduler: Scheduler) -> str:
    """By its name; the script's PATH begins with the folder of the one that submits."""
    return "python" if scheduler.container else Path(sys.executable).name


def _name(program: Program, tasks: Sequence[Task]) -> str:
    """The program, then the experiment and name if all tasks share them: train-vta_sam-frozen."""
    words = [program.script.stem]
    for key in ("exp", "name"):
        values = {str((task.settings or {}).get(key) or "") for task in tasks}
        words += [value for value in values if value and len(values) == 1]
    return "-".join(words)


def refuse_launcher_of_a_file(config: Mapping) -> None:
    """A config whose command line chose no launcher must have none. Raises InputError."""
    if config.get("launcher") is not None:
        raise InputError("a config file chooses the launcher, and each job would submit another one: choose it on the "
                         "command line alone")
