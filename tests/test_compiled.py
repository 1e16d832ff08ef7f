"""Many processes that want librosa's compiled functions at once, none of them compiled yet."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba.core.config
import numpy as np
import pytest

from vta_sam.runtime import cache_folder
from vta_sam.runtime.librosa_import import librosa

CODE = "import numpy as np; from vta_sam.runtime.librosa_import import librosa; " \
       "print(librosa.util.peak_pick(np.sin(np.arange(200) / 5), pre_max=3, post_max=3, pre_avg=3, post_avg=3, " \
       "delta=0.01, wait=5).tolist())"


def expected() -> list[int]:
    return librosa.util.peak_pick(np.sin(np.arange(200) / 5), pre_max=3, post_max=3, pre_avg=3, post_avg=3, delta=0.01,
                                  wait=5).tolist()


def start(cache: Path, **environ: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "XDG_CACHE_HOME": str(cache), **environ}, cwd=Path(__file__).parents[1])


def test_numbas_functions_are_kept_for_the_whole_process():
    """Not only while librosa is imported: the home and the installation may both be read-only."""
    assert os.environ["NUMBA_CACHE_DIR"] == vars(numba.core.config)["CACHE_DIR"]
    assert Path(os.environ["NUMBA_CACHE_DIR"]).is_dir()


@pytest.mark.slow
def test_processes_compile_one_after_the_other(tmp_path):
    """At once they left files behind that ended every later process with a segmentation fault. All but one of librosa's
    functions lie there already, which take half a minute."""
    shutil.copytree(cache_folder("numba"), tmp_path / "vta_sam" / "numba", ignore=shutil.ignore_patterns(
        ".*", "*.tmp.*", "*__peak_pick*"))
    saved = []
    for count in (3, 1):  # at once, and then one more
        for process in [start(tmp_path, NUMBA_DEBUG_CACHE="1") for _ in range(count)]:
            said, complaint = process.communicate(timeout=300)
            assert process.returncode == 0, complaint
            assert said.splitlines()[-1] == str(expected()) != "[]"
            saved.append("data saved to" in said)
    assert saved.count(True) == 1, "one compiles, the others load"
    kept = list(tmp_path.glob("vta_sam/numba/*/guf-utils.__peak_pick*.nbc"))
    assert len(kept) == 4, "each type compiled once, by the first process"


@pytest.mark.slow
def test_without_a_place_for_files_it_compiles_all_the_same(tmp_path):
    (tmp_path / "vta_sam").write_text("a file where the folder should be")
    process = start(tmp_path)
    said, complaint = process.communicate(timeout=300)
    assert process.returncode == 0 and said.strip() == str(expected()), complaint
