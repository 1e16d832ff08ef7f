"""Sweeps of conf/sweep without an account, and finished runs as one table: see --help."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from vta_sam.cli import run


@run
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    grid = verbs.add_parser("multirun", help="a sweep's grid as a Hydra multirun; printed, and with --run started")
    grid.add_argument("name", help="of conf/sweep/<name>.yaml")
    grid.add_argument("--runs", default=None, help="folder of the runs (default: runs/<name>)")
    grid.add_argument("--run", action="store_true", help="start it")
    collect = verbs.add_parser("collect", help="finished runs as runs.csv and runs.png")
    collect.add_argument("runs", type=Path, help="folder of the runs")
    collect.add_argument("--out", type=Path, default=None, help="folder to write to (default: the runs' own)")
    told = parser.parse_args()

    from vta_sam.study.sweep import finished_runs, read_sweep, write_table

    if told.verb == "multirun":
        arguments = read_sweep(told.name).multirun(told.runs or f"runs/{told.name}")
        command = [sys.executable, str(Path(__file__).with_name("train.py")), *arguments]
        print(shlex.join(["python", "experiments/train.py", *arguments]))
        return subprocess.run(command).returncode if told.run else 0
    from vta_sam.study.drawing import runs_picture

    found, out = finished_runs(told.runs), told.out or told.runs
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "runs.csv", found)
    runs_picture(out / "runs.png", found)
    print(out / "runs.csv", out / "runs.png", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
