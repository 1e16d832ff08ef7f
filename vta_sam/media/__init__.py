"""Reading and writing video and sound files: true times, any size, untrusted files in processes that can be killed."""

# Suffixes of files that are tried as videos, or as sounds; opening a file shows whether it is one.
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .ivf .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogm .ogv "
    ".qt .ts .vob .webm .wmv".split())
SOUND_SUFFIXES = frozenset(".aac .aif .aiff .flac .m4a .mp3 .oga .ogg .opus .wav".split())
