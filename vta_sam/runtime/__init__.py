"""What every program stands on. This file itself is the one owner of homes and caches: where files lie that can be made
again, also on machines without a home that can be written; and of what this process may use of the machine's cores.
``import vta_sam`` calls it, so it imports nothing of size.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import stat
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath


def settle_home() -> None:
    """Let this process and its children find a home, and a cache in which they can write.

    Many libraries look both up as they are imported (numba, nltk, matplotlib, platformdirs, the hub's). Where the usual
    place for caches does, $XDG_CACHE_HOME or else ~/.cache, the environment stays as it is. Else it names one that
    does, at worst in a private folder under the temporary directory, and one warning says so. That folder is also the
    home of a user id that has none. What the usual cache holds for reading stays in use.
    """
    with suppress(FileNotFoundError):  # no temporary directory either: what can't do without one says so itself
        home = _home()
        usual = _usual_caches(home)
        folder = next((place for place in usual if takes_files(place)), None) or private_folder() / ".cache"
        if home is None:
            os.environ["HOME"] = str(private_folder())
        if not usual:
            _warn("this user has no home folder", folder)
        elif folder != usual[0]:
            _warn(f"{usual[0]} can't be written to", folder)
        if folder not in usual[:1]:
            _redirect(usual, folder)
        config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        if not takes_files(Path(config) / "matplotlib"):
            os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))  # else it looks for fonts in each process


def cache_folder(name: str) -> Path:
    """An existing folder that can be written, for files of this project that can be made again.

    It is ``vta_sam/<name>`` in $XDG_CACHE_HOME, else in ~/.cache, else in :func:`private_folder`.

    Args:
        name: of the folder, one for each kind of files.

    Raises:
        OSError: there is not even a temporary directory.
    """
    for place in _usual_caches(_home()):
        folder = place / "vta_sam" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if takes_files(folder):
            return folder
    folder = private_folder() / ".cache" / "vta_sam" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def takes_files(folder: Path) -> bool:
    """Whether files can be written in a folder, or where it would be made. Nothing stays behind."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):  # permissions don't tell of read-only disks and exceeded quotas
            return True
    except OSError:
        return False


@cache
def private_folder() -> Path:
    """``vta_sam-<user id>`` under the temporary directory, which nobody else can read or write. Where somebody else has
    taken that name, a folder of this process, which goes when it ends.

    Raises:
        FileNotFoundError: there is no temporary directory.
    """
    user = getattr(os, "getuid", int)()
    folder = Path(tempfile.gettempdir()) / f"vta_sam-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and (os.name == "nt" or found.st_uid == user and not found.st_mode & 0o077)
    except OSError:
        own = False
    if not own:
        folder = Path(tempfile.mkdtemp(prefix="vta_sam-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _home() -> Path | None:
    """The user's home; None: there is none. A HOME that is empty or no absolute path counts as none given."""
    if "HOME" in os.environ and not os.path.isabs(os.environ["HOME"]):
        del os.environ["HOME"]  # libraries read such a one each in its own way
    try:
        home = Path.home()
    except (RuntimeError, KeyError):
        return None
    return home if home.is_absolute() else None


def _usual_caches(home: Path | None) -> list[Path]:
    named = os.environ.get("XDG_CACHE_HOME")
    return [*([Path(named)] if named else []), *([home / ".cache"] if home else [])]


def _redirect(usual: list[Path], folder: Path) -> None:
    """Name ``folder`` as the cache, and go on reading weights and tokens that lie in the usual one."""
    for name, part in (("HF_HOME", "huggingface"), ("TORCH_HOME", "torch")):
        if usual and name not in os.environ and os.path.isdir(usual[0] / part):
            os.environ[name] = str(usual[0] / part)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    for name, part in (("HF_XET_CACHE", "huggingface/xet"), ("TRITON_HOME", "triton")):
        os.environ.setdefault(name, str(folder / part))


def _warn(why: str, folder: Path) -> None:
    warnings.warn_explicit(f"{why}; caches are kept in {folder}, XDG_CACHE_HOME names another place", UserWarning,
                           "vta_sam", 1)  # without a line of code, which is of no use to users


def usable_cores(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, at least 1: those of its affinity, as a scheduler sets it, and no more than the
    processor time that its cgroups allow, as of a container. A part of a core counts as one.

    Args:
        own: file of the system that says which cgroups this process is in.
        groups: folder of all cgroups.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            group = PurePosixPath(path.lstrip("/"))
            for place in (group, *group.parents):  # a group is bounded by those that hold it
                with suppress(OSError, ValueError, ZeroDivisionError):  # a group without a quota says "max", or -1
                    root = groups / ("cpu" if controllers else "")
                    quota, period = " ".join((root / place / name).read_text() for name in names).split()
                    if int(quota) > 0:
                        cores.append(math.ceil(int(quota) / int(period)))
    return max(1, min(cores))
