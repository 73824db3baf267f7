"""Sphinx settings."""

from regard import __version__

project = "regard"
copyright = "the regard engineers, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "regard"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
