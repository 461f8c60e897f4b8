"""d2_covid: finds, outlines and explains lung lesions in chest CT with light Mask R-CNN models, on Detectron2.

Importing the package lets an unmodified Detectron2 run (:mod:`d2_covid.compat`) and registers its models.
"""

from . import compat

compat.apply()

from . import modeling as _modeling  # noqa: E402, F401  (registers backbones and heads)
from .config import add_covid_config, get_config  # noqa: E402

__version__ = "0.1.0"

__all__ = ["__version__", "add_covid_config", "get_config"]
