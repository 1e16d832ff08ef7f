"""Decoding on a device: what isn't there is refused at the start, and what is asked for reaches FFmpeg."""

import sys

import av
import numpy as np
import pytest
from av.codec.hwaccel import hwdevices_available

from vta_sam.media import container
from vta_sam.media import picture_reader as hardware
from vta_sam.media.decode_pool import DecodePool
from vta_sam.media.decoding import ClipRequest
from vta_sam.media.guarded import GuardedReader
from vta_sam.media.picture_reader import Squeeze, check_hwaccel
from vta_sam.media.video import read_clip, stream_clip
from vta_sam.runtime.errors import InputError

ECHO = """
import resource, sys
import vta_sam.media.decoding as decoding
def stream_clip(path, hwaccel, **rest):
    limits = [resource.getrlimit(kind)[0] >> 20 for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    raise decoding.InputError(f"{hwaccel} {limits}")
decoding.stream_clip = stream_clip
decoding.serve(decoding.Connection(int(sys.argv[1]), writable=False), decoding.socket.socket(fileno=int(sys.argv[2])),
               int(sys.argv[3]), sys.argv[4] or None)
"""


class EchoReader(GuardedReader):
    command = (sys.executable, "-c", ECHO)


def test_software_needs_no_device_and_an_unknown_device_is_refused():
    check_hwaccel(None)
    with pytest.raises(InputError, match="hwaccel=steam is not known here; this build of FFmpeg has .*hwaccel=null"):
        check_hwaccel("steam")


@pytest.mark.parametrize("name", hwdevices_available())
def test_a_device_is_either_usable_or_refused_in_words(name):
    """Which of the two depends on the machine; on most, for most kinds, it is the second."""
    try:
        check_hwaccel(name)
    except InputError as error:
        assert f"hwaccel={name} can't be used here (" in str(error)


def test_a_device_that_can_not_be_opened_is_refused(monkeypatch):
    class Broken:
        def create(self, codec):
            raise av.error.PermissionError(1, "no driver")

    monkeypatch.setattr(hardware, "hwdevices_available", lambda: ["cuda"])
    monkeypatch.setattr(hardware, "accelerator", lambda name: Broken())
    with pytest.raises(InputError, match="hwaccel=cuda can't be used here .no driver."):
        check_hwaccel("cuda")


@pytest.mark.parametrize("kind, gpus, environ, device", [
    ("cuda", 4, {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, "2"),
    ("cuda", 4, {}, "0"), ("cuda", 1, {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}, "0"),
    ("cuda", 0, {}, None), ("vaapi", 4, {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}, None),
])
def test_a_gpu_that_decodes_is_this_process_s_own(monkeypatch, kind, gpus, environ, device):
    """As its networks' is: of several processes on a machine each has another."""
    made = []

    class Recorded:
        def __init__(self, **told):
            made.append(told)

        def create(self, codec):
            pass

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vta_sam.runtime.distributed.visible_gpus", lambda: gpus)
    monkeypatch.setattr(container, "HWAccel", Recorded)
    monkeypatch.setattr(hardware, "hwdevices_available", lambda: [kind])
    check_hwaccel(kind)
    with DecodePool(2, hwaccel=kind) as pool:
        told = {reader.hwaccel for reader in pool.readers}
    assert told == {kind if device is None else f"{kind}:{device}"}
    container.accelerator(told.pop())
    assert made == [{"device_type": kind, "device": device, "allow_software_fallback": True}] * 2


def test_the_device_reaches_ffmpeg(make_video, tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", duration_s=0.2)
    given = []
    real = av.open

    def fake(*arguments, hwaccel, **rest):
        given.append(hwaccel)
        return real(*arguments, **rest)

    here = read_clip(path, fps=25, fits=[Squeeze(8, 8)], want_audio=False)
    monkeypatch.setattr(container.av, "open", fake)
    [[there]] = stream_clip(path, fps=25, fits=[Squeeze(8, 8)], want_audio=False, hwaccel="cuda")
    assert np.array_equal(here.frames[0], there)
    assert given[0].allow_software_fallback and not given[0].is_hw_owned
    list(stream_clip(path, fps=25, fits=[Squeeze(8, 8)], want_audio=False))
    assert len(given) == 2 and given[1] is None


@pytest.mark.parametrize("hwaccel, address_space", [(None, True), ("cuda", False)])
def test_the_device_reaches_the_child_whose_memory_stays_limited(hwaccel, address_space):
    with EchoReader(memory_mb=3000, hwaccel=hwaccel) as reader:
        with pytest.raises(InputError) as caught:
            list(reader.stream(ClipRequest("a.mp4", 8, (Squeeze(8, 8),))))
    name, limits = str(caught.value).split(" ", 1)
    assert name == str(hwaccel)
    assert (limits.startswith("[3000, ") if address_space else limits.endswith(", 3000]")), limits
