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
napoleon_use_ivar = True
# So that autosummary finds bioren.pp.bridge: pp and tl are attributes, not files.
sys.modules |= {f"bioren.{alias}": getattr(bioren, alias) for alias in ("pp", "tl")}

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
html_title = f"bioren {version}"
