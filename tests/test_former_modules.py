"""Users' own code that imports modules under their former names."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from vta_sam.runtime.former_modules import FORMER, today


@pytest.mark.filterwarnings("ignore:.*has moved to")
@pytest.mark.parametrize("former", sorted(FORMER))
def test_a_former_name_is_todays_module(former):
    sys.modules.pop(f"vta_sam.{former}", None)
    found = importlib.import_module(f"vta_sam.{former}")
    assert found is importlib.import_module(f"vta_sam.{FORMER[former]}")
    assert found.__spec__.name == found.__name__ == f"vta_sam.{FORMER[former]}"


def test_modules_of_a_former_package_are_found_though_they_stand_in_no_table():
    assert today("shards.storage") == "dataset.shards.storage" and today("media.audio") is None


@pytest.mark.slow
def test_an_import_by_a_former_name_warns_and_gives_the_same_classes():
    code = ("from vta_sam.conditioners.base import Conditioner; from vta_sam.shards.schema import read_dataset; "
            "import vta_sam.diffusion.condition, vta_sam.dataset.shards.schema as schema; "
            "assert Conditioner is vta_sam.diffusion.condition.Conditioner and read_dataset is schema.read_dataset")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vta_sam.conditioners.base has moved to vta_sam.diffusion.condition" in ended.stderr
