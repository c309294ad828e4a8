"""Settings of the site; `build_site.py` gathers its pages."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "resnet-limits"
author = "the authors of resnet-limits"
version = release = version_of("resnet-limits")

extensions = [
    "adjust",
    "mathml",
    "myst_parser",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("Array", "ArrayLike", "Arrays", "Fit")}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "resnet-limits"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_search_summary = False  # summaries are fetched, which browsers refuse to local files
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
pygments_style = "default"
pygments_dark_style = "github-dark"
