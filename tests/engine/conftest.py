"""A lesion dataset and a config so small that a training step takes milliseconds."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Callable

from d2_covid import get_config
from d2_covid.data.datasets import register_lesions
from d2_covid.engine.checkpoint import read_checkpoint
from d2_covid.engine.trainer import Trainer

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

SIZE = 64


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_lesions(folder: Path, split: str, patients: list[str], slices: int) -> Path:
    """Write ``slices`` noisy slices a patient with one bright disc each (every third has none), and their json."""
    rng = np.random.default_rng(len(split))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    images, annotations = [], []
    for patient in patients:
        for index in range(slices):
            image = rng.integers(0, 60, (SIZE, SIZE))
            image_id = len(images) + 1
            if index % 3 != 2:
                y, x, radius = rng.integers(20, 44), rng.integers(20, 44), rng.integers(8, 14)
                disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
                image[disc] += 150
                rle = mask_util.encode(np.asfortranarray(disc.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "iscrowd": 0,
                        "area": int(disc.sum()),
                        "bbox": mask_util.toBbox(rle).tolist(),
                        "segmentation": {"size": [SIZE, SIZE], "counts": rle["counts"].decode()},
                    }
                )
            name = f"{patient}/{index}.png"
            (folder / "image" / patient).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(folder / "image" / name)
            images.append({"id": image_id, "file_name": name, "patient_id": patient, "height": SIZE, "width": SIZE})
    path = folder / f"{split}.json"
    content = {
        "info": {"mask_type": "merge", "image_root": "image"},
        "categories": [{"id": 1, "name": "lesion"}],
        "images": images,
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


TINY = (
    *("MODEL.DEVICE", "cpu", "SEED", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.RPN.CONV_DIMS", "[8]", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "7"),
    *("INPUT.MIN_SIZE_TRAIN", f"({SIZE},)", "INPUT.MIN_SIZE_TEST", str(SIZE), "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "TEST.BOOTSTRAP", "0"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]"),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]", "TEST.DETECTIONS_PER_IMAGE", "10", "SOLVER.BASE_LR", "0.001"),
    *("INPUT.AUGMENTATION.HORIZONTAL_FLIP", "0.5", "INPUT.AUGMENTATION.ROTATION", "10.0", "SOLVER.EPOCHS", "0"),
    *("SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "2"),
)
"""Overrides that leave a ResNet18-T2 with heads of eight channels."""


@pytest.fixture(scope="session")
def lesion_sets(tmp_path_factory) -> dict[str, Path]:
    """Json files of a training set (two patients, 6 slices) and a test set (one other patient, 3 slices)."""
    folder = tmp_path_factory.mktemp("lesions")
    sets = {
        "train": make_lesions(folder, "train", ["1", "2"], 3),
        "test": make_lesions(folder, "test", ["3"], 3),
    }
    for split, path in sets.items():
        register_lesions(f"engine_{split}", path)
    return sets


def tiny_config(*opts) -> CfgNode:
    """The tiny config, with overrides, that trains and tests on :func:`lesion_sets`."""
    data = ("DATASETS.TRAIN", "('engine_train',)", "DATASETS.TEST", "('engine_test',)")
    return get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", [*TINY, *data, *map(str, opts)])


@pytest.fixture
def tiny(lesion_sets, tmp_path) -> Callable[..., CfgNode]:
    """:func:`tiny_config`, writing to tmp_path/run."""
    return lambda *opts: tiny_config("OUTPUT_DIR", tmp_path / "run", *opts)


@pytest.fixture(scope="session")
def reference(lesion_sets, tmp_path_factory) -> Path:
    """Folder of a tiny run of six iterations that nobody disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    Trainer(tiny_config("OUTPUT_DIR", folder)).train()
    return folder


@pytest.fixture(scope="session")
def reference_weights(reference) -> dict[str, torch.Tensor]:
    """The final weights of :func:`reference`."""
    return read_checkpoint(reference / "model_final.pth")["model"]


def assert_same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Of the same names, bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


@pytest.fixture
def tiny_command(lesion_sets, repository, tmp_path) -> Callable[..., list[str]]:
    """The command line of the run that :func:`reference` is of, writing to tmp_path, with overrides and flags."""
    command = [sys.executable, repository / "tools" / "train_net.py"]
    command += ["--config-file", "segmentation/mask_rcnn_R_18_T2_FPN.yaml"]
    for split, path in lesion_sets.items():
        command += ["--register-lesions", f"engine_{split}", path, path.parent / "image"]
    data = ("DATASETS.TRAIN", "('engine_train',)", "DATASETS.TEST", "('engine_test',)", "OUTPUT_DIR", tmp_path)
    return lambda *opts, flags=(): [*map(str, (*command, *flags, *TINY, *data)), *opts]


@pytest.fixture(scope="session")
def load_tool(repository) -> Callable[[str], ModuleType]:
    """Imports a script of tools/ by its path: Detectron2 0.6 from PyPI brings a package of that name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"tool_{name}", repository / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
