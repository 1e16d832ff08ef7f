"""VTA-SAM: video-to-audio generation with fine-grained temporal semantics (arXiv 2409.14709)."""

from .runtime import settle_home as _settle_home
from .runtime.former_modules import install as _install_former_modules

__version__ = "0.1.0"

__all__ = ["__version__", "load", "trust"]


def load(path, device="cpu"):
    """Read a model folder, or fetch a released model by name ⇒ a pipeline that puts sound under videos.

    Imported late, so that ``import vta_sam`` stays free of torch. See :func:`vta_sam.generation.pipeline.load`.
    """
    from .generation.pipeline import load as load_pipeline

    return load_pipeline(path, device=device)


def trust(target, name=None):
    """Let model folders name a class of one's own, such as ``"mine.Mine"``.

    See :func:`vta_sam.checkpoints.parts.trust`."""
    from .checkpoints.parts import trust as trust_part

    trust_part(target, name)


_settle_home()  # before any library looks for a home
_install_former_modules()
