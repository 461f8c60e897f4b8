"""d2_covid: finds, outlines and explains lung lesions in chest CT with light Mask R-CNN models, on Detectron2.

Importing the package lets an unmodified Detectron2 run (:mod:`d2_covid.compat`) and registers its models.
Import it before Detectron2.
"""

import warnings

from . import compat

compat.apply()

with warnings.catch_warnings():
    # Detectron2 scripts a few functions while it is imported; nothing that a reader of this warning could change.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    from . import modeling as _modeling  # noqa: F401  (registers backbones and heads)
    from .data import datasets as _datasets  # noqa: F401  (registers dataset names)

from .config import add_covid_config, get_config  # noqa: E402

__version__ = "0.1.0"

__all__ = ["__version__", "add_covid_config", "get_config"]
