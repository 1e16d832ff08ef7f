"""Reading and writing video and sound files: true times, any size, strangers' files in processes that can be killed."""
