"""Sweeps of conf/sweep without an account or on a cluster, and finished runs as one table: see --help."""

import shlex
import subprocess
import sys
from pathlib import Path

from vta_sam.runtime.cli import parsed, run
from vta_sam.settings import RUN_FOLDER, TrainSettings
from vta_sam.settings.tools import SWEEP

TRAIN = Path(__file__).with_name("train.py")


@run
def main():
    verb, options = parsed(__doc__, SWEEP)
    if verb in ("array", "agents"):
        return submit(verb, options)
    from vta_sam.study.sweep import finished_runs, read_sweep, write_table

    if verb == "multirun":
        grid = read_sweep(options.name).multirun(str(options.runs or f"runs/{options.name}"))
        command = [sys.executable, str(TRAIN), *grid]
        print(shlex.join(["python", "experiments/train.py", *grid]))
        return subprocess.run(command).returncode if options.run else 0
    from vta_sam.study.sweep import plan_table, runs_picture

    found, out = finished_runs(options.runs), options.out or options.runs
    if options.plan:
        from rich.console import Console

        plan_table(found, out).show(Console())
        return 0
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "runs.csv", found)
    runs_picture(out / "runs.png", found)
    print(out / "runs.csv", out / "runs.png", sep="\n")
    return 0


def submit(verb, options):
    from vta_sam.runtime.cluster.launch import launch, launch_agents, Program, with_launcher
    from vta_sam.study.sweep import read_sweep

    train = Program(TRAIN, "train", RUN_FOLDER, settings=TrainSettings)
    if verb == "agents":
        launch_agents(train, options.sweep_id, options.count, options.runs_each, options.rest)
    else:
        grid = read_sweep(options.name).multirun(str(options.runs or f"runs/{options.name}"))
        launch(train, [*grid, *with_launcher(options.rest)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
