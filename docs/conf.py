import shutil
import sys
from pathlib import Path

import bioren

project = "bioren"
author = "The bioren developers"
copyright = "2026, The bioren developers"
version = release = bioren.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

# Docstrings: numpydoc sections, types from the signature.
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
autodoc_typehints_description_target = "documented"
# scikit-learn writes these methods and their docstrings, which point into its own documentation.
sklearn_methods = ["fit", "transform", "inverse_transform"]
autodoc_default_options = {
    "exclude-members": ",".join(f"set_{method}_request" for method in sklearn_methods)
}
# So that autosummary finds bioren.pp.bridge: pl, pp and tl are attributes, not files.
sys.modules |= {f"bioren.{alias}": getattr(bioren, alias) for alias in ("pl", "pp", "tl")}

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tutorials are shown as they were executed; the tests execute them.
nb_execution_mode = "off"
# Sphinx reads only below this folder, and tutorials/ stands beside it.
here = Path(__file__).parent
shutil.rmtree(here / "tutorials", ignore_errors=True)
shutil.copytree(
    here.parent / "tutorials",
    here / "tutorials",
    ignore=shutil.ignore_patterns(".ipynb_checkpoints", "*.h5ad"),
)

html_theme = "sphinx_book_theme"
html_theme_options = {"navbar_persistent": []}  # the search field is in the sidebar already
html_title = f"bioren {version}"


def setup(app):
    # The docstring of a named tuple describes its fields; Python's own lines on them say nothing.
    app.connect(
        "autodoc-skip-member",
        lambda app, what, name, member, skip, options: (
            True if str(member.__doc__).startswith("Alias for field number") else None
        ),
    )
