"""Videos and a manifest ⇒ shards of clip records."""
