"""Systems side by side on a static page that plays, shows and measures them; it opens from disk, without network."""

from .page import PageClip, PageRequest, write_page

__all__ = ["PageClip", "PageRequest", "write_page"]
