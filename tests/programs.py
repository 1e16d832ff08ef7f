"""Entry scripts run in this process as their commands are run: importing torch and its friends once more for each would
take longer than what they do here."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[1]


def call(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """⇒ what ``python script arguments`` says and its exit status; an uncaught exception is a traceback and 1.

    script: from the repository's root.
    """
    import torch

    path, told = REPOSITORY / script, list(map(str, arguments))
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    status: object = 0
    with (contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          mock.patch.object(sys, "argv", [str(path), *told]),
          mock.patch.object(sys, "path", [str(path.parent), *sys.path])):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            status = 1
            traceback.print_exc()
        finally:
            torch.set_num_threads(threads)
    if isinstance(status, str):  # as the interpreter does with words
        err.write(f"{status}\n")
    return subprocess.CompletedProcess([str(path), *told], status if isinstance(status, int) else 1, out.getvalue(),
                                       err.getvalue())
