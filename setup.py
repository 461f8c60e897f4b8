"""Packaging of d2_covid. Imports neither torch nor the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "d2_covid" / "__init__.py").read_text()).group(1)

# Detectron2 is not here: PyPI has it under no name of its own. INSTALL.md gives the ways to get it.
# OpenCV, pycocotools, Matplotlib, nibabel and ONNX Runtime: the first that work with NumPy 2, and with 1 too.
REQUIRES = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.23",
    "pillow>=9.4",
    "opencv-python-headless>=4.10.0.84",
    "pycocotools>=2.0.8",
    "fvcore>=0.1.5.post20221221,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "yacs>=0.1.8",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1,<1.4",
    "cloudpickle",
    "termcolor>=1.1",
    "tabulate",
    "tensorboard",
    "packaging",
    "matplotlib>=3.9",
    "scipy>=1.9",
    "tqdm>4.29",
    "jinja2>=3.1",
]
EXTRAS = {
    "dicom": [
        "pydicom>=3.0",
        "pylibjpeg>=2.0",
        "pylibjpeg-libjpeg>=2.1",
        "pylibjpeg-openjpeg>=2.3",
        "highdicom>=0.23",
        "nibabel>=5.2.1",
        "SimpleITK>=2.3",
    ],
    "export": [
        "onnx>=1.16",
        "onnxruntime>=1.19",
        "onnxscript>=0.5",
    ],
    "peers": [
        "mayaku>=2.0",  # which `make bench` measures beside the others where it is installed
    ],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "ruff>=0.17.6,<0.18",  # the formatter's style may change with the next
        "scikit-learn>=1.3",
    ],
}
EXTRAS["all"] = sorted({name for extra, names in EXTRAS.items() if extra != "peers" for name in names})

setup(
    name="d2_covid",
    version=VERSION,
    description="Finds, outlines and explains lung lesions in chest CT with light Mask R-CNN models, on Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    # The yaml files live beside the package in the repository and inside it once installed.
    packages=[*find_packages(include=["d2_covid", "d2_covid.*"]), "d2_covid.configs"],
    package_dir={"d2_covid.configs": "configs"},
    py_modules=["d2_covid_entry"],
    package_data={
        "d2_covid.configs": ["**/*.yaml"],
        "d2_covid": ["**/*.html", "**/*.json", "models/*.pth", "models/README.md"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["d2-covid = d2_covid_entry:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
