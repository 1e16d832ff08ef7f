"""Sweeps of conf/sweep without an account or on a cluster, and finished runs as one table: see --help."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from vta_sam.runtime.cli import run
from vta_sam.settings import RUN_FOLDER, TrainSettings

TRAIN = Path(__file__).with_name("train.py")
SUBMITTED = ("array", "agents")  # verbs that make jobs


def arguments() -> argparse.Namespace:
    """The command line; ``overrides`` are train.py's and its launcher's, at any place."""
    made = argparse.ArgumentParser(description=__doc__)
    verbs = made.add_subparsers(dest="verb", required=True)
    grid = verbs.add_parser("multirun", help="a sweep's grid as a Hydra multirun; printed, and with --run started")
    grid.add_argument("name", help="of conf/sweep/<name>.yaml")
    grid.add_argument("--runs", default=None, help="folder of the runs (default: runs/<name>)")
    grid.add_argument("--run", action="store_true", help="start it")
    array = verbs.add_parser("array", usage="%(prog)s [-h] [--runs RUNS] name [launcher.KEY=… …]",
                             help="a sweep's grid as an array of jobs: SLURM's, or launcher=NAME's "
                             "(docs/cluster.md)")
    array.add_argument("name", help="of conf/sweep/<name>.yaml")
    array.add_argument("--runs", default=None, help="folder of the runs (default: runs/<name>)")
    agents = verbs.add_parser("agents", usage="%(prog)s [-h] --count N [--runs-each N] sweep_id [launcher.KEY=… …]",
                              help="agents of a wandb sweep as an array of jobs, likewise")
    agents.add_argument("sweep_id", help="as `wandb sweep` printed it: entity/project/id")
    agents.add_argument("--count", type=int, required=True, metavar="N", help="how many agents")
    agents.add_argument("--runs-each", type=int, default=1, metavar="N", help="runs after which an agent ends (1)")
    collect = verbs.add_parser("collect", help="finished runs as runs.csv and runs.png")
    collect.add_argument("runs", type=Path, help="folder of the runs")
    collect.add_argument("--out", type=Path, default=None, help="folder to write to (default: the runs' own)")
    known, overrides = made.parse_known_args()
    strange = [word for word in overrides if known.verb not in SUBMITTED or word.startswith("-")]
    if strange:
        made.error(f"unrecognized arguments: {' '.join(strange)}")
    return argparse.Namespace(**vars(known), overrides=overrides)


@run
def main():
    chosen = arguments()
    if chosen.verb in SUBMITTED:
        return submit(chosen)
    from vta_sam.study.sweep import finished_runs, read_sweep, write_table

    if chosen.verb == "multirun":
        grid = read_sweep(chosen.name).multirun(chosen.runs or f"runs/{chosen.name}")
        command = [sys.executable, str(TRAIN), *grid]
        print(shlex.join(["python", "experiments/train.py", *grid]))
        return subprocess.run(command).returncode if chosen.run else 0
    from vta_sam.study.sweep import runs_picture

    found, out = finished_runs(chosen.runs), chosen.out or chosen.runs
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "runs.csv", found)
    runs_picture(out / "runs.png", found)
    print(out / "runs.csv", out / "runs.png", sep="\n")
    return 0


def submit(chosen: argparse.Namespace) -> int:
    from vta_sam.runtime.cluster.launch import launch, launch_agents, Program, with_launcher
    from vta_sam.study.sweep import read_sweep

    train = Program(TRAIN, "train", RUN_FOLDER, settings=TrainSettings)
    if chosen.verb == "agents":
        launch_agents(train, chosen.sweep_id, chosen.count, chosen.runs_each, chosen.overrides)
    else:
        grid = read_sweep(chosen.name).multirun(chosen.runs or f"runs/{chosen.name}")
        launch(train, [*grid, *with_launcher(chosen.overrides)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
