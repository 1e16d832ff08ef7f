"""Decoding on a device instead of the processor: which there are, and whether one can be used."""

from __future__ import annotations

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

from ..errors import InputError

_CODECS = ("h264", "hevc", "vp9", "av1", "vp8", "mpeg4", "mpeg2video")  # what videos are coded with


def accelerator(device_type: str) -> HWAccel:
    """A kind of device by FFmpeg's name (cuda, vaapi, …) ⇒ what av.open takes. Streams that the device can't decode are
    decoded in software."""
    return HWAccel(device_type=device_type, allow_software_fallback=True)


def check_hwaccel(device_type: str | None) -> None:
    """Raises InputError where this build of FFmpeg doesn't know such devices, none of its decoders uses them, or none
    can be opened here: then every clip would fail, or would quietly be decoded in software. None is always fine."""
    if device_type is None:
        return
    known = hwdevices_available()
    if device_type not in known:
        raise InputError(f"hwaccel={device_type} is not known here; this build of FFmpeg has "
                         f"{', '.join(known) or 'none'}; hwaccel=null decodes in software")
    reason = "none of its decoders uses it"
    for codec in _CODECS:
        try:
            accelerator(device_type).create(av.Codec(codec, "r"))
            return
        except (av.codec.codec.UnknownCodecError, NotImplementedError):
            continue  # not a codec of this device
        except av.error.FFmpegError as error:
            reason = error.strerror or str(error)
            break
    raise InputError(f"hwaccel={device_type} can't be used here ({reason}); hwaccel=null decodes in software")
