"""The keys that d2_covid adds to Detectron2's config, and the way to a ready config."""

from functools import reduce
from pathlib import Path
from typing import Any, Sequence

from detectron2.config import CfgNode, get_cfg
from yaml import YAMLError, safe_load

from .errors import UserError


def add_covid_config(cfg: CfgNode) -> None:
    """Add the keys of d2_covid to ``cfg``, with the paper's values where it gives one and no comment says otherwise;
    of Detectron2's own keys, ``INPUT.RANDOM_FLIP`` alone gets another default."""
    # What a lesion mask holds: "merge" (one class, lesion), "ggo" (ground-glass opacity only) or "both" (two classes).
    cfg.DATASETS.MASK_TYPE = "merge"

    # On a CPU, the features of RoIs the quick way (d2_covid.modeling.roi_features), with the same results. False is for
    # comparison.
    cfg.MODEL.ROI_HEADS.FAST_POOLING = True

    # How class logits become scores at test time: "softmax", or "sigmoid", where a RoI's classes do not compete
    # (paper, section 3, point 1).
    cfg.MODEL.ROI_BOX_HEAD.SCORE_FUNCTION = "softmax"

    # ---- image classifier (COVID-CT-Mask-Net, module S) ----
    cfg.MODEL.CLASSIFIER = CfgNode()
    # Detections per image that the classifier reads (D), the width of its two hidden layers, and image classes (C).
    cfg.MODEL.CLASSIFIER.NUM_ROIS = 128
    cfg.MODEL.CLASSIFIER.HIDDEN_DIM = 512
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    # The four box numbers beside each score: "deltas" (the box head's encoded regression output, as in the paper's
    # program) or "boxes" (x0, y0, x1, y1 as shares of the image's width and height, as its section 3.1 reads).
    cfg.MODEL.CLASSIFIER.FEATURES = "deltas"
    # Which detections are ranked. Separate from ROI_HEADS.*_TEST, which choose the detections that are shown;
    # a score threshold below 0 keeps every one (paper, section 3).
    cfg.MODEL.CLASSIFIER.SCORE_THRESH = -0.01
    cfg.MODEL.CLASSIFIER.NMS_THRESH = 0.75
    # Leave out boxes without area (paper, section 3, point 2).
    cfg.MODEL.CLASSIFIER.DROP_EMPTY = True
    # Too few detections are repeated in place: "even" (as equally often as can be) or "sampled" with a seed (paper,
    # section 3, point 2; its program draws anew each time).
    cfg.MODEL.CLASSIFIER.PADDING = "even"
    cfg.MODEL.CLASSIFIER.PADDING_SEED = 0
    # "bce" (binary cross-entropy on the one-hot class) or "ce", and a weight per image class (empty: all equal).
    cfg.MODEL.CLASSIFIER.LOSS = "bce"
    cfg.MODEL.CLASSIFIER.CLASS_WEIGHTS = ()
    # Train the weight and bias of BatchNorm along with S. False: S alone, from a cache of ranked detections.
    cfg.MODEL.CLASSIFIER.TRAIN_NORM = True
    # Where that cache is (empty: in OUTPUT_DIR). Runs may share a folder: what differs gets entries of its own.
    cfg.MODEL.CLASSIFIER.CACHE_DIR = ""
    # Allow training without a segmentation checkpoint in MODEL.WEIGHTS.
    cfg.MODEL.CLASSIFIER.ALLOW_SCRATCH = False
    # Image scores are softmax(logits / TEMPERATURE); fit it on validation data only.
    cfg.MODEL.CLASSIFIER.TEMPERATURE = 1.0

    # Order of the classifier's training slices: "as_is" (each once an epoch) or "balanced" (each class equally often).
    cfg.DATALOADER.SLICE_SAMPLING = "as_is"

    # Hounsfield window of slices that come in Hounsfield units: level (centre) and width.
    cfg.INPUT.WINDOW = CfgNode({"LEVEL": -600.0, "WIDTH": 1500.0})
    # Training augmentation, each 0 or off in the paper.
    cfg.INPUT.AUGMENTATION = CfgNode()
    # Chance of a left-right and of an up-down flip.
    cfg.INPUT.AUGMENTATION.HORIZONTAL_FLIP = 0.0
    cfg.INPUT.AUGMENTATION.VERTICAL_FLIP = 0.0
    # Largest rotation, in degrees to either side.
    cfg.INPUT.AUGMENTATION.ROTATION = 0.0
    # Scale drawn from [1 - x, 1 + x], the canvas kept.
    cfg.INPUT.AUGMENTATION.SCALE = 0.0
    # Brightness and contrast drawn from [1 - x, 1 + x].
    cfg.INPUT.AUGMENTATION.INTENSITY = 0.0
    # Detectron2's own flip, "horizontal" there, is not used.
    cfg.INPUT.RANDOM_FLIP = "none"

    # "Adam" or "AdamW" (decoupled decay), or "SGD".
    cfg.SOLVER.OPTIMIZER = "Adam"
    # Passes over the training set. Above 0 it replaces MAX_ITER, STEPS, CHECKPOINT_PERIOD and EVAL_PERIOD, which are
    # then worked out from the size of the set and IMS_PER_BATCH, so that one config serves any batch size.
    cfg.SOLVER.EPOCHS = 0
    # With EPOCHS: the learning rate drops by GAMMA after these shares of the training (empty: it stays).
    cfg.SOLVER.STEP_FRACTIONS = ()
    # With EPOCHS: passes between two checkpoints, and between two evaluations (0: only at the end).
    cfg.SOLVER.CHECKPOINT_EPOCHS = 1.0
    cfg.TEST.EVAL_EPOCHS = 0.0
    # How many periodic checkpoints stay on disk (0: all), besides model_best.pth and model_final.pth.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # Number type of mixed precision, under SOLVER.AMP.ENABLED: "float16" or "bfloat16". A CPU takes bfloat16.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"

    # Predict and evaluate with a copy of the model that gives the same results faster (d2_covid.modeling.fast):
    # BatchNorm folded, one gray channel read, less work around the convolutions. False is for comparison.
    cfg.TEST.FAST = True
    # Type of the features in that copy: "float32" (the model's results to 1e-4; where a GPU convolves in TF32, as
    # PyTorch lets it from Ampere on, both round to that), "bfloat16", or on a GPU "float16". Boxes, scores, suppression
    # and ranking stay in single precision.
    cfg.TEST.DTYPE = "float32"
    # On a GPU, launch that copy's dense part as one CUDA graph for each shape of a batch.
    cfg.TEST.CUDA_GRAPH = False
    # What a lesion model's BatchNorm predicts with: the "running" statistics of its training, or each "slice"'s own, as
    # it trained in batches of one. A checkpoint carries it. "slice" takes the plain model, without TEST.FAST.
    cfg.TEST.NORM_STATISTICS = "running"

    # Detections scoring above this enter the paper's own average precision (paper, section 3).
    cfg.TEST.PAPER_AP_SCORE_THRESH = 0.75
    # Detections scoring at least this are united into the slice's lesion mask for Dice, sensitivity, specificity.
    cfg.TEST.UNION_SCORE_THRESH = 0.5
    # Slices behind the patient's class: "any_k" (so many slices show it) and "top_k_mean" (its so many highest scores).
    cfg.TEST.PATIENT_K = 3
    # Resamples of patients behind each 95 % interval (0: none).
    cfg.TEST.BOOTSTRAP = 1000
    # Compute the training losses on the test sets too, as val/total_loss and so on.
    cfg.TEST.VALIDATION_LOSS = True
    # Metric that names the best checkpoint, as it stands in metrics.json, the higher the better. With several test
    # sets, one that names none (<set>/segm/AP50) is the first one's.
    cfg.TEST.BEST_METRIC = "segm/AP50"


def config_dir() -> Path:
    """Folder of the yaml files: inside the package once installed, beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise UserError("d2_covid was installed without its configs; reinstall it (INSTALL.md).")


def get_config(config_file: str | Path | None = None, opts: Sequence[str] = ()) -> CfgNode:
    """A config with Detectron2's and d2_covid's keys, a yaml file and overrides merged in.

    Args:
        config_file: a path, or a name below :func:`config_dir` such as ``segmentation/mask_rcnn_R_18_T1_FPN.yaml``.
        opts: ``KEY VALUE KEY VALUE ...`` as on a command line.

    Raises:
        UserError: no such file, one that is no config, or an unknown key; the message names it.
    """
    cfg = get_cfg()
    add_covid_config(cfg)
    if config_file:
        _merge_file(cfg, _config_path(config_file))
    merge_overrides(cfg, opts)
    return cfg


def own_keys(config_file: str | Path) -> set[str]:
    """Keys of two parts, such as ``SOLVER.MAX_ITER``, that a file which :func:`get_config` takes sets itself, whatever
    its ``_BASE_`` sets."""
    sections = safe_load(_config_path(config_file).read_text(encoding="utf-8")) or {}
    return {f"{name}.{key}" for name, section in sections.items() if isinstance(section, dict) for key in section}


def config_value(cfg: CfgNode, key: str) -> Any:
    """The value of a key of several parts, such as ``SOLVER.MAX_ITER``."""
    return reduce(lambda node, part: node[part], key.split("."), cfg)


def _config_path(config_file: str | Path) -> Path:
    for path in (Path(config_file), config_dir() / config_file):
        if path.is_file():
            return path
    raise UserError(f"No config file {config_file}; those that ship are in {config_dir()}.")


def merge_overrides(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge ``KEY VALUE KEY VALUE ...``, as on a command line, into ``cfg``.

    Raises:
        UserError: an unknown key, or a value of another type; the message has it.
    """
    try:
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        raise UserError(f"Config override {' '.join(map(str, opts))}: {_one_line(error.args[0])}") from error


def _merge_file(cfg: CfgNode, path: Path) -> None:
    """Merge a yaml file and those that it builds on (``_BASE_``) into ``cfg``.

    Raises:
        UserError: it is no config, or builds on a file that is not there.
    """
    try:
        # Detectron2's default, True, lets a file run code: one may come with somebody's weights.
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        raise UserError(
            f"{path} can't be read with its _BASE_ ({reason}); give _BASE_ the path of a config, such as one in "
            f"{config_dir()}."
        ) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not plain yaml: {_one_line(error)}") from error
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"{path}: {_one_line(error.args[0])}") from error
    except (TypeError, AttributeError, RecursionError) as error:  # of what is no mapping of keys to values
        raise UserError(f"{path} holds no config: it, and its _BASE_, must be lines of KEY: value.") from error


def _one_line(reason: object) -> str:
    """Its text in a line, without the middle where it quotes whole sections; the key in question stands at the end."""
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"
