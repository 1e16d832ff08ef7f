"""A command line that says ``launcher=slurm`` ⇒ a job in place of this process. docs/cluster.md is the user's view."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .batch_script import Job, Slurm
from .submit import submit
from .tasks import GROUP, Program, Task, plan

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
    slurm, tasks = plan(program, overrides)
    script = program.script.resolve()
    folder = Path.cwd()
    words = [_python(slurm), str(script.relative_to(folder) if script.is_relative_to(folder) else script)]
    submit(slurm, Job(_name(program, tasks), folder, [[*words, *task.overrides] for task in tasks]))


def launch_agents(program: Program, sweep_id: str, agents: int, runs_each: int, overrides: Sequence[str]) -> None:
    """Submit an array of wandb agents, each of which ends after ``runs_each`` runs of the sweep. program: whose config
    has the launcher; overrides: of the launcher alone."""
    for name, value in (("count", agents), ("runs-each", runs_each)):
        if value < 1:
            raise InputError(f"--{name} {value}: expected a whole number from 1 on")
    strange = [override for override in overrides if not override.startswith(f"{GROUP}.")]
    if strange:
        raise InputError(f"{strange[0]}: agents get their settings from the sweep; only {GROUP}.KEY=… can be given")
    slurm, _ = plan(program, [f"{GROUP}=slurm", *overrides])
    # an agent that doesn't pass signals on would end by the one before the time limit, and its run with it
    command = [_python(slurm), "-m", "wandb", "agent", "--forward-signals", "--count", str(runs_each), sweep_id]
    submit(slurm, Job("wandb-agent", Path.cwd(), [command] * agents))


def _python(slurm: Slurm) -> str:
    """By its name; the script's PATH begins with the folder of the one that submits."""
    return "python" if slurm.container else Path(sys.executable).name


def _name(program: Program, tasks: Sequence[Task]) -> str:
    """The program, then what all tasks agree on of experiment and name: train-vta_sam-frozen."""
    words = [program.script.stem]
    for key in ("exp", "name"):
        values = {str((task.settings or {}).get(key) or "") for task in tasks}
        words += [value for value in values if value and len(values) == 1]
    return "-".join(words)
