"""Which clips there are: manifests, and writing them from what people have."""
