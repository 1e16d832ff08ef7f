"""The tiny models: an image trunk that knows ten words and an audio tagger that knows ten sounds, and their recipes."""
