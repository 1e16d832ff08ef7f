"""How long a user waits for an answer that needs no computing: --help, and a mistake on the command line.

    python benchmarks/startup.py --repeat 3
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from _report import Report, median, parser, seconds

from vta_sam.runtime.cli import run
from vta_sam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = [str(path.relative_to(REPOSITORY)) for folder in ("experiments", "data_prep")
            for path in sorted((REPOSITORY / folder).glob("*.py"))]
COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {  # arguments, and the exit status that they have to end with
    **{f"{Path(script).name} --help": ((script, "--help"), 0) for script in PROGRAMS},
    "train.py --help=conditioner": (("experiments/train.py", "--help=conditioner"), 0),
    "train.py with a wrong key": (("experiments/train.py", "sizee=base"), 2),
    "train.py with a wrong nested key": (("experiments/train.py", "+exp=vta_sam", "fit.vae.batch=4"), 2),
}


def answer(arguments: tuple[str, ...], status: int) -> None:
    """Raises InputError where the program ends otherwise than it should: that would be measuring a failure."""
    ended = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    if ended.returncode != status:
        raise InputError(f"{' '.join(arguments)} ended with status {ended.returncode}, expected {status}: "
                         f"{ended.stderr.strip()[-300:]}")


def cpu_s() -> float:
    """Processor time of the children that have ended: what other programs on the machine don't change much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@run
def main() -> None:
    arguments = parser("Seconds until an entry script has answered.")
    arguments.add_argument("--repeat", type=int, default=3, help="starts of each, of which the median counts")
    options = arguments.parse_args()
    rows = []
    for name, (command, status) in COMMANDS.items():
        before = cpu_s()
        times = seconds(lambda: answer(command, status), options.repeat)
        rows.append({"command": name, "median_s": median(times, 2), "slowest_s": round(max(times), 2),
                     "cpu_s": round((cpu_s() - before) / options.repeat, 2)})
    Report("start of entry scripts", rows, {"repeat": options.repeat}).show(options.json)


if __name__ == "__main__":
    main()
