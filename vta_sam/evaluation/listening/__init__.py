"""A listening test: a page for raters that runs from a folder, and the analysis of their answers."""
