"""Machines without a home, or with one that can't be written: every cache finds a place, one sentence says where."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from vta_sam import runtime
from vta_sam.runtime import cache_folder, private_folder, settle_home, takes_files

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME", "HF_XET_CACHE", "TORCH_HOME",
         "TRITON_HOME", "NUMBA_CACHE_DIR")
PRIVATE = f"vta_sam-{getattr(os, 'getuid', int)()}"


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The temporary directory, and an environment that names no home and no cache."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in NAMES})
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    private_folder.cache_clear()
    yield folder
    private_folder.cache_clear()


@pytest.fixture
def homeless(scratch, monkeypatch):
    """A user id without an entry: nobody can say where its home is, unless HOME does."""
    def home() -> Path:
        if "HOME" in os.environ:
            return Path(os.environ["HOME"])
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    return scratch


@pytest.fixture
def read_only(monkeypatch):
    """A function that makes a folder one of a read-only disk, which permissions alone would not be to root."""
    closed, usual = [], (tempfile.TemporaryFile, Path.mkdir)

    def refuse(place: Path) -> None:
        if any(Path(place).is_relative_to(folder) for folder in closed):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))

    def temporary_file(*given, **named):
        refuse(named["dir"])
        return usual[0](*given, **named)

    def mkdir(self, *given, **named):
        if not self.exists():
            refuse(self)
        usual[1](self, *given, **named)

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    return closed.append


def settled() -> tuple[dict[str, str], list[str]]:
    """⇒ what became of the environment's homes, and the sentences."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        settle_home()
    return {name: os.environ[name] for name in NAMES if name in os.environ}, [str(warning.message) for warning in said]


def test_where_homes_are_as_usual_nothing_changes(scratch, tmp_path):
    os.environ["HOME"] = str(tmp_path / "home")
    assert settled() == ({"HOME": str(tmp_path / "home")}, [])
    assert cache_folder("numba") == tmp_path / "home" / ".cache" / "vta_sam" / "numba"
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    assert settled()[1] == [] and not (tmp_path / "cache").exists()
    assert cache_folder("numba") == tmp_path / "cache" / "vta_sam" / "numba"
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_user_without_a_home_gets_a_private_one(homeless, home):
    if home is not None:
        os.environ["HOME"] = home
    private = homeless / PRIVATE
    names, (said,) = settled()
    assert said.startswith(f"this user has no home folder; caches are kept in {private / '.cache'}")
    assert names["HOME"] == str(private) and names["XDG_CACHE_HOME"] == str(private / ".cache")
    assert os.path.expanduser("~/nltk_data") == str(private / "nltk_data")
    assert private.stat().st_mode & 0o777 == 0o700
    assert cache_folder("numba") == private / ".cache" / "vta_sam" / "numba"
    assert settled() == (names, []), "children have nothing to say"


def test_a_cache_that_is_named_is_enough(homeless, tmp_path):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    names, said = settled()
    assert not said and names["HOME"] == str(homeless / PRIVATE) and names["XDG_CACHE_HOME"] == str(tmp_path)
    assert "HF_XET_CACHE" not in names


def test_a_home_that_cannot_be_written_is_still_read(scratch, tmp_path, read_only):
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    read_only(home)
    os.environ["HOME"] = str(home)
    names, (said,) = settled()
    cache = scratch / PRIVATE / ".cache"
    assert said == (f"{home / '.cache'} can't be written to; caches are kept in {cache}, XDG_CACHE_HOME names another "
                    "place")
    assert names == {"HOME": str(home), "XDG_CACHE_HOME": str(cache), "MPLCONFIGDIR": str(cache / "matplotlib"),
                     "HF_HOME": str(home / ".cache" / "huggingface"),
                     "HF_XET_CACHE": str(cache / "huggingface" / "xet"), "TRITON_HOME": str(cache / "triton")}
    assert cache_folder("numba") == cache / "vta_sam" / "numba"
    assert settled() == (names, [])


def test_a_home_that_cannot_even_be_made(scratch):
    os.environ["HOME"] = "/proc/none"
    names, (said,) = settled()
    assert said.startswith("/proc/none/.cache can't be written to") and str(scratch) in names["MPLCONFIGDIR"]


def test_a_named_cache_that_cannot_be_written_gives_way_to_the_home(scratch, tmp_path, read_only):
    closed = tmp_path / "closed"
    closed.mkdir()
    read_only(closed)
    os.environ |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(closed)}
    names, (said,) = settled()
    assert said.startswith(f"{closed} can't be written to") and names["XDG_CACHE_HOME"] == str(tmp_path / ".cache")
    assert not list(scratch.iterdir())


def test_a_file_in_the_way_of_the_cache(scratch, tmp_path):
    os.environ |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "vta_sam").write_text("in the way")
    assert cache_folder("numba") == tmp_path / ".cache" / "vta_sam" / "numba"
    (tmp_path / ".cache" / "vta_sam" / "numba").rmdir()
    (tmp_path / ".cache" / "vta_sam").rmdir()
    (tmp_path / ".cache" / "vta_sam").write_text("in the way")
    assert cache_folder("numba") == scratch / PRIVATE / ".cache" / "vta_sam" / "numba"


@pytest.mark.parametrize("taken", ["another's", "open", "link", "file"])
def test_a_temporary_folder_that_others_can_change_is_not_used(scratch, tmp_path, monkeypatch, taken):
    folder = scratch / PRIVATE
    if taken == "file":
        folder.write_text("")
    elif taken == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir(0o777 if taken == "open" else 0o700)
        folder.chmod(0o777 if taken == "open" else 0o700)
    if taken == "another's":
        monkeypatch.setattr(runtime.os, "getuid", lambda: 4242)
        folder.rename(folder := scratch / "vta_sam-4242")
    found = private_folder()
    assert found != folder and found.parent == scratch and found.stat().st_mode & 0o777 == 0o700
    assert private_folder() == found


def test_without_a_temporary_directory_nothing_is_said_yet(homeless, monkeypatch):
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert settled() == ({}, [])
    with pytest.raises(FileNotFoundError):
        cache_folder("numba")


def test_looking_leaves_nothing_behind(tmp_path):
    assert takes_files(tmp_path / "a" / "b") and not list(tmp_path.iterdir())
    assert not takes_files(Path("/proc/none/at/all"))


IMPORTS = """
import os, tempfile
from pathlib import Path
import vta_sam.evaluation.evaluate, vta_sam.evaluation.results, vta_sam.metrics.onsets
import vta_sam.perception.tagging as tagging
from vta_sam.runtime.librosa_import import librosa
import matplotlib, platformdirs, numpy as np
assert librosa.onset.onset_strength(y=np.random.default_rng(0).normal(size=8000).astype("float32"), sr=16000).size
assert [token.text for token in tagging.tag("a dog barks") if token.is_noun] == ["dog"]
for folder in (matplotlib.get_cachedir(), matplotlib.get_configdir(), platformdirs.user_cache_dir("x"),
               os.environ["NUMBA_CACHE_DIR"], os.path.expanduser("~")):
    assert Path(folder).is_relative_to(tempfile.gettempdir()), folder
print("imported")
"""


@pytest.mark.slow
def test_evaluation_needs_no_home(tmp_path):
    """The real thing: a user id without an entry, and no HOME. librosa finds itself compiled, which takes half a
    minute."""
    unknown = [shutil.which("unshare") or "unshare", "-U", "--map-user=12345"]
    try:
        subprocess.run([*unknown, "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs user namespaces: {error}")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    from vta_sam.runtime import librosa_import  # noqa: F401  compiles librosa where no program has yet

    numba = temporary / "vta_sam-12345" / ".cache" / "vta_sam" / "numba"
    shutil.copytree(cache_folder("numba"), numba, ignore=shutil.ignore_patterns(".*", "*.tmp.*"))
    (temporary / "vta_sam-12345").chmod(0o700)
    environ = {name: value for name, value in os.environ.items() if name not in NAMES}
    environ |= {"TMPDIR": str(temporary), "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run([*unknown, sys.executable, "-c", IMPORTS], env=environ, capture_output=True, text=True,
                           timeout=300, cwd=tmp_path)
    assert ended.returncode == 0 and ended.stdout == "imported\n", ended.stderr
    assert ended.stderr.count("caches are kept in") == 1, ended.stderr
    assert (numba / ".librosa.lock").is_file(), "librosa looked for itself elsewhere"
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"], "nothing is written where it was started"
