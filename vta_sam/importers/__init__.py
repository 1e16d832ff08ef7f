"""Released checkpoints ⇒ model folders of this project: one file a source."""
