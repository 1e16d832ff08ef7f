"""How entry scripts speak: to users in sentences, to programmers with a traceback."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import vta_sam
from vta_sam.runtime.cli import run
from vta_sam.runtime.errors import InputError

OURS = str(Path(vta_sam.__file__).parent / "features.py")


def test_what_the_project_warns_of_is_said_without_a_line_of_code():
    usual = warnings.formatwarning

    @run
    def main() -> list[str]:
        said = [("an unknown word", UserWarning, OURS, 3), ("an old name", FutureWarning, OURS, 3),
                ("theirs", UserWarning, "/elsewhere/x.py", 3)]
        return [warnings.formatwarning(*words, None) for words in said]

    ours, old, theirs = main()
    assert ours == "warning: an unknown word\n"
    assert "features.py:3" in old and "/elsewhere/x.py:3" in theirs
    assert warnings.formatwarning is usual


@pytest.mark.parametrize("error, status", [(InputError("x.mp4 is empty"), 2), (KeyboardInterrupt(), 130)])
def test_what_a_user_can_mend_is_a_sentence_and_a_status(error, status, capsys):
    @run
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert capsys.readouterr().err == ("error: x.mp4 is empty\n" if status == 2 else "interrupted\n")


def test_a_fault_of_the_program_keeps_its_traceback():
    @run
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()
