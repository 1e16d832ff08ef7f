"""Systems side by side on a static page that plays, shows and measures them; it opens from disk, without network."""

from .page import write_page
from .request import PageClip, PageRequest

__all__ = ["PageClip", "PageRequest", "write_page"]
