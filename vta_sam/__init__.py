"""VTA-SAM: video-to-audio generation with fine-grained temporal semantics (arXiv 2409.14709)."""

from ._version import __version__

__all__ = ["__version__", "load"]


def load(path, device="cpu"):
    """Read a model folder, or fetch a released model by name ⇒ a pipeline that puts sound under videos.

    Imported late, so that ``import vta_sam`` stays free of torch. See :func:`vta_sam.pipeline.load`.
    """
    from .pipeline import load as load_pipeline

    return load_pipeline(path, device=device)
