"""Reading and writing video and sound files: true times, any size, strangers' files in processes that can be killed."""

# what a file is called that may be a video; what it is, is found out by opening it
VIDEO_SUFFIXES = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
SOUND_SUFFIXES = frozenset(".aac .aif .aiff .flac .m4a .mp3 .oga .ogg .opus .wav".split())
