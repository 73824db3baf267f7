"""Sphinx settings."""

import os
import sys
from pathlib import Path

from regard import __version__

sys.path.insert(0, str(Path(__file__).parent))
from gallery import draw_all

os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a kernel's debugger speaks of what no page uses

project = "regard"
copyright = "the regard engineers, Apache-2.0"
version = release = __version__
extensions = ["myst_nb", "sources", "formulas", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
html_math_renderer = "mathml"
myst_heading_anchors = 3
exclude_patterns = ["_build", "jupyter_execute", ".jupyter_cache"]
html_theme = "furo"
html_title = "regard"
pygments_dark_style = "github-dark"
html_theme_options = {  # the colours of `regard look`
    "light_css_variables": {"color-brand-primary": "#1b4a86", "color-brand-content": "#1b4a86"},
    "dark_css_variables": {"color-brand-primary": "#8cc0ea", "color-brand-content": "#8cc0ea"},
}
html_static_path = ["static"]
html_css_files = ["wide.css"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"  # what stands between backticks in a docstring is code
toc_object_entries_show_parents = "hide"
# the course's pages are run; what they gave is kept until a page or the library changes
nb_execution_mode = "cache"
nb_execution_timeout = 3600  # seconds a cell; a minute's training takes ten on a machine that does much else
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # what libraries say there depends on the machine
nb_number_source_lines = False
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"


def setup(app):  # type: ignore[no-untyped-def]
    """Draw the gallery before the pages are read."""
    app.connect("builder-inited", lambda _: draw_all(Path(__file__).parent / "gallery"))
