"""Runs a model that `d2-covid export` wrote, with NumPy and ONNX Runtime (a .pt2 file: PyTorch and torchvision).

    python run.py SLICE.png [SLICE.npy ...] [-o FOLDER]

or, from Python:

    from run import Session
    session = Session("model.onnx")           # model.json lies beside it
    result = session(slice_u8)                # (H, W) uint8, a lung window; session.gray(hounsfield) makes it
    result.boxes, result.scores, result.masks, result.image_scores

A slice may be a PNG or another image file (that needs Pillow), or a .npy array: uint8 gray, or Hounsfield units of any
other type, which have air in them. Row 0 is the most anterior, column 0 at the patient's right. Research use only: not
a medical device.
Exit status: 0 done, 2 the model or a slice can't be used: a line says why, and the other slices are done.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

_UNUSABLE = (OSError, ValueError, EOFError, ImportError)
"""What is raised of a slice, or a model, that can't be used."""

_AIR, _LEAST_AIR = (-1500.0, -200.0), 0.01
"""Every chest CT has air: at least this share of its pixels lies between these Hounsfield units. Below is padding."""


@dataclass(frozen=True)
class Result:
    """What was found on one slice, in descending score, in the slice's own pixels.

    Attributes:
        boxes: (R, 4) float32, x0, y0, x1, y1.
        scores: (R,) float32.
        classes: (R,) int64, indices into ``lesion_classes`` of model.json.
        masks: (R, H, W) bool; None from a model without masks.
        soft_masks: (R, M, M) float32 probabilities over the boxes; None likewise.
        image_scores: (C,) float32, of ``image_classes``; None from a model that does not classify.
        raw: what the graph itself gave, by name.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: "np.ndarray | None"
    soft_masks: "np.ndarray | None"
    image_scores: "np.ndarray | None"
    raw: dict


class Session:
    """A model, loaded once and called often.

    Args:
        path: the model's file, or the folder that holds it and model.json.
        threads: of the computation; None: as many as the library takes.
    """

    def __init__(self, path, threads=None):
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        self.info = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        file = folder / self.info["file"] if path.is_dir() else path
        if hashlib.sha256(file.read_bytes()).hexdigest() != self.info["sha256"]:
            raise ValueError(f"{file} is not the file that {folder / 'model.json'} describes; export it again")
        self.names = [output["name"] for output in self.info["outputs"]]
        batch = self.info["input"]["shape"][0]
        self._batch = batch if isinstance(batch, int) else 1
        self._compute = (_torch_program if file.suffix == ".pt2" else _onnx_session)(file, threads)

    def __call__(self, slice_u8):
        """Find lesions on a slice, (H, W) uint8. The part "dense" gives ``raw`` alone."""
        slice_u8 = np.asarray(slice_u8)
        if slice_u8.ndim != 2 or slice_u8.dtype != np.uint8:
            raise ValueError(f"a slice is an (H, W) uint8 array, not {slice_u8.shape} {slice_u8.dtype}")
        image = self.prepare(slice_u8)
        # A graph for a fixed number of images gets the one that often.
        raw = self.compute(np.repeat(image[None], self._batch, axis=0))
        if self.info["part"] == "dense":
            raw = {name: value[:1] for name, value in raw.items()}
            nothing = np.zeros((0, 4), np.float32)
            return Result(nothing, nothing[:, 0], np.zeros(0, np.int64), None, None, None, raw)
        return self.finish(raw, image.shape, slice_u8.shape)

    def gray(self, hounsfield):
        """Hounsfield units as the gray that the model was made for: (H, W) uint8."""
        window = self.info["preprocessing"]["window"]
        return window_to_gray(hounsfield, window["level"], window["width"])

    def prepare(self, slice_u8):
        """A slice in the size that the graph takes: (h, w) uint8."""
        size = self.info["preprocessing"]["size"]
        return resize(slice_u8, *network_size(*slice_u8.shape, size["shortest_edge"], size["longest_edge_at_most"]))

    def compute(self, images):
        """The graph alone: (N, h, w) uint8 to its outputs by name."""
        if not takes(self.info["input"], images.shape):
            raise ValueError(f"this model takes images as the 'input' of its model.json says, not {list(images.shape)}")
        return dict(zip(self.names, self._compute(np.ascontiguousarray(images))))

    def finish(self, raw, network_shape, slice_shape, image=0):
        """The outputs of one image of a batch as a :class:`Result` in the pixels of its slice."""
        found = raw["image_index"] == image
        height, width = slice_shape
        scale = np.array([width / network_shape[1], height / network_shape[0]] * 2, np.float32)
        boxes = raw["boxes"][found] * scale
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        found[found] = kept
        boxes = boxes[kept]
        masks = soft = None
        if "masks" in raw:
            soft = raw["masks"][found]
            masks = paste_masks(soft, boxes, height, width, self.info["thresholds"]["mask"])
        scores = raw["image_scores"][image] if "image_scores" in raw else None
        return Result(boxes, raw["scores"][found], raw["classes"][found], masks, soft, scores, raw)


def takes(info, shape):
    """Whether images of a shape (N, h, w) are what ``input`` of model.json asks for."""
    if any(isinstance(want, int) and want != got for want, got in zip(info["shape"], shape)):
        return False
    least, most = info["bounds"]["shortest_edge"], info["bounds"]["longest_edge"]
    return least <= min(shape[1:]) and max(shape[1:]) <= most and shape[0] <= info["bounds"]["batch"]


def window_to_gray(hounsfield, level, width):
    """Hounsfield units to uint8 gray: linear inside the window, halves round up; what is not a number is air."""
    gray = (np.asarray(hounsfield, dtype=np.float64) - (level - width / 2)) * (255 / width)
    return np.floor(np.clip(np.nan_to_num(gray, nan=0.0), 0, 255) + 0.5).astype(np.uint8)


def _is_value(values):
    return np.abs(values) < 1e30  # neither NaN nor infinite, nor the largest floats, which fill gaps


def network_size(height, width, shortest_edge, longest_edge_at_most):
    """Height and width that a slice is resized to: its shorter edge to a fixed length, its longer one bounded."""
    if shortest_edge <= 0:
        return height, width
    scale = shortest_edge / min(height, width)
    height, width = (shortest_edge, scale * width) if height < width else (scale * height, shortest_edge)
    if max(height, width) > longest_edge_at_most:
        scale = longest_edge_at_most / max(height, width)
        height, width = height * scale, width * scale
    return int(height + 0.5), int(width + 0.5)


def resize(image, height, width):
    """A uint8 image in another size, byte for byte as Pillow's ``resize(..., BILINEAR)`` makes it.

    A triangle filter, as wide as the reduction asks for, along the rows and then along the columns; weights in
    units of 2**-22, and each of the two results rounded to a byte.
    """
    for axis, length in ((1, width), (0, height)):
        if image.shape[axis] != length:
            weights = _resize_weights(image.shape[axis], length)
            values = image.astype(np.float64)  # holds every sum of such products exactly
            values = values @ weights.T if axis else weights @ values
            image = np.clip(np.floor((values + 2**21) / 2**22), 0, 255).astype(np.uint8)
    return image


@lru_cache(maxsize=16)
def _resize_weights(before, after):
    scale = before / after
    reach = max(scale, 1.0)
    weights = np.zeros((after, before))
    for index in range(after):
        center = (index + 0.5) * scale
        first = max(int(center - reach + 0.5), 0)
        last = min(int(center + reach + 0.5), before)
        distance = np.abs((np.arange(first, last) - center + 0.5) / reach)
        row = np.clip(1 - distance, 0, None)
        weights[index, first:last] = np.floor(row / row.sum() * 2**22 + 0.5)
    return weights


def paste_masks(masks, boxes, height, width, threshold=0.5):
    """Masks over their boxes as masks of the slice.

    A pixel is inside if the mask's probability at its center, interpolated linearly between the centers of its cells
    (zeros around them), is at least the threshold.

    Args:
        masks: (R, M, M) float32; boxes: (R, 4), not empty, in the slice.

    Returns:
        (R, height, width) bool.
    """
    pasted = np.zeros((len(masks), height, width), dtype=bool)
    for mask, box, out in zip(masks, boxes, pasted):
        left, top = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(box[2:]).astype(int) + 1, (width, height))
        across = _cell_weights(left, right, box[0], box[2], mask.shape[1])
        down = _cell_weights(top, bottom, box[1], box[3], mask.shape[0])
        np.greater_equal(down @ mask @ across.T, threshold, out=out[top:bottom, left:right])
    return pasted


def _cell_weights(first, last, start, end, cells):
    """How much of each of a mask's cells a pixel takes along one axis: (last - first, cells)."""
    pixels = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    place = (pixels - start) / (end - start) * np.float32(cells) - np.float32(0.5)
    distance = np.abs(place[:, None] - np.arange(cells, dtype=np.float32))
    return np.clip(1 - distance, 0, None)


def _onnx_session(file, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # kinds of its own
        raise _not_loaded(file, f"ONNX Runtime {onnxruntime.__version__}", error) from error
    return lambda images: session.run(None, {"image": images})


def _torch_program(file, threads):
    import torch

    if threads:
        torch.set_num_threads(threads)
    try:
        import torchvision  # noqa: F401  (brings the operators that the program calls)

        program = torch.export.load(str(file)).module()
    except ImportError:
        raise
    except Exception as error:  # an older PyTorch has many
        raise _not_loaded(file, f"PyTorch {torch.__version__}", error) from error

    def compute(images):
        with torch.no_grad():
            return [output.numpy() for output in program(torch.from_numpy(images))]

    return compute


def _not_loaded(file, library, error):
    words = " ".join(str(error).split())[:200]
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return ValueError(f"{file} can't be loaded by {library}; its model.json has the versions it was made with ({said})")


def read_slice(path, session, has_air=False):
    """A slice from a .npy array or an image file: (H, W) uint8. ``has_air``: others of its series have been found to be
    Hounsfield units, by :func:`air_in`."""
    if Path(path).suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if array.dtype == np.uint8:
            return array
        values = np.asarray(array, dtype=np.float64)
        is_value = _is_value(values)
        # Fat is below 0, and stored values or gray never are.
        if not (air_in([values]) or (has_air and (values < 0).any())):
            values = values[is_value]
            if not values.size:
                raise ValueError(f"{path} has no pixel with a finite value")
            raise ValueError(
                f"{path}: values from {values.min():g} to {values.max():g} can't be Hounsfield units: a chest CT has "
                f"air, below {_AIR[1]:g}; save Hounsfield units (stored values times RescaleSlope, plus "
                "RescaleIntercept), or gray of the model's window as uint8"
            )
        return session.gray(np.where(is_value, values, -1024.0))
    from PIL import Image

    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{path} holds {image.n_frames} frames; save each slice as a file of its own")
        if image.mode == "F":
            raise ValueError(f"{path} holds floating-point values; save Hounsfield units as .npy")
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise ValueError(f"{path} has values outside 0 to 65535; save Hounsfield units as .npy")
            return ((values + 128) // 257).astype(np.uint8)
        return np.array(image if image.mode == "L" else image.convert("RGB").convert("L"))


def air_in(arrays):
    """Whether float64 arrays can be Hounsfield units, by d2_covid's own rule for a series; else they would be white."""
    air = total = 0
    for array in arrays:
        values = array[_is_value(array)]
        air += np.count_nonzero((values > _AIR[0]) & (values < _AIR[1]))
        total += values.size
    return total > 0 and air >= _LEAST_AIR * total


def _arrays(paths):
    """Of .npy files, those that hold no gray; one that can't be read is told when its turn comes."""
    for path in paths:
        if Path(path).suffix == ".npy":
            try:
                array = np.load(path, allow_pickle=False)
                if array.dtype != np.uint8:
                    yield np.asarray(array, dtype=np.float64)
            except _UNUSABLE:
                continue


def main():
    parser = argparse.ArgumentParser(description="Run an exported d2_covid model. Not a medical device.")
    parser.add_argument("slices", nargs="+", metavar="SLICE", help=".png, another image file, or .npy")
    parser.add_argument("--model", default=Path(__file__).parent, help="the model's folder (default: this file's)")
    parser.add_argument("--score", type=float, help="least score to print (default: model.json's)")
    parser.add_argument("-o", "--output", type=Path, help="folder for a .npz file of each slice")
    args = parser.parse_args()
    try:
        return 0 if _run(args) else 2
    except _UNUSABLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args):
    """Whether every slice could be used."""
    files = _result_files(args.slices)
    session = Session(args.model)
    has_air = air_in(_arrays(args.slices))
    well = True
    for path, file in zip(args.slices, files):
        try:
            result = session(read_slice(path, session, has_air))
            _print(path, result, session.info, args.score)
            if args.output:
                _save(result, args.output / file)
        except BrokenPipeError:  # nobody reads on
            raise
        except _UNUSABLE as error:
            named = "" if str(path) in str(error) else f"{path}: "
            print(f"error: {named}{error}", file=sys.stderr)
            well = False
    return well


def _print(path, result, info, least):
    least = info["thresholds"]["lesion_score"] if least is None else least
    print(path)
    for number in np.flatnonzero(result.scores >= least):
        box = " ".join(f"{value:.1f}" for value in result.boxes[number])
        area = "" if result.masks is None else f", {int(result.masks[number].sum())} pixels"
        print(f"  {info['lesion_classes'][result.classes[number]]} {result.scores[number]:.3f} at {box}{area}")
    if result.image_scores is not None:
        print("  " + ", ".join(f"{n} {s:.3f}" for n, s in zip(info["image_classes"], result.image_scores)))


def _save(result, target):
    """Write a result whole, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in vars(result).items() if v is not None and k != "raw"}
    part = target.with_name(f"{target.name}.part")
    try:
        with open(part, "wb") as stream:
            np.savez_compressed(stream, **kept)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _result_files(slices):
    """Where each slice's result goes: its name, below as many of its folders as tell it from the others."""
    # As they are named, also where that is a link; without the root, so that none leads out of the folder.
    paths = [Path(os.path.abspath(path)).with_suffix("") for path in slices]
    parts = [path.relative_to(path.anchor).parts for path in paths]
    common = 1
    while len({one[-common:] for one in parts}) < len(set(parts)) and common < max(map(len, parts)):
        common += 1
    names = [Path(*one[-common:]) for one in parts]
    times = Counter(names)  # several files of one name but for the type, or one given twice
    return [f"{name}.npz" if times[name] == 1 else f"{name}.{i}.npz" for i, name in enumerate(names)]


if __name__ == "__main__":
    sys.exit(main())
