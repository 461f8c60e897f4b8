"""A training step: of the segmentation model and of the classifier, beside the same step of the torchvision peers."""

from typing import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..data.lesion_masks import lesion_components
from ..data.mappers import LesionDatasetMapper
from ..data.preprocessing import network_input
from ..engine.optimizer import build_optimizer
from ..engine.seeding import seed_everything
from ..engine.setup import build_for_device
from .classification_peer import TorchvisionClassifier
from .context import PLAIN, TORCHVISION, Bench, State, build_with, plain_parts
from .inputs import many_lesions
from .results import Section, timed_section
from .timing import Work, interleave
from .torchvision_peer import as_peer_images, as_peer_targets, build_torchvision_peer, convert_to_torchvision
from .work import flops_of, work_columns, work_notes

TRAINING = "d2_covid"
"""Candidate's name of the model as d2_covid trains it."""


def training(bench: Bench) -> Section:
    """One update of the segmentation model with the paper's batch and optimiser, the samples in memory."""
    mapper = LesionDatasetMapper(bench.cfg, is_train=True)
    dicts = bench.inputs.dicts
    samples = [mapper(dict(dicts[i % len(dicts)], sample_seed=i)) for i in range(8)]
    steps = {name: make() for name, make in training_steps(bench.cfg, bench.state, samples).items()}
    seconds = interleave(
        steps, repeats=bench.settings.repeats, budget=12 if bench.settings.quick else 30, device=bench.device
    )
    flops = dict.fromkeys(seconds, flops_of(steps[PLAIN], 1 if bench.settings.quick else 4))
    lesions = sum(len(x["instances"]) for x in samples) / len(samples)
    return timed_section(
        "training",
        f"a training step of segmentation, batch 1: forward, backward, {bench.cfg.SOLVER.OPTIMIZER}",
        seconds,
        reference=TORCHVISION,
        unit="step",
        extra=work_columns(flops, seconds, bench.rates),
        notes=[
            f"Samples in memory, {lesions:.1f} lesions a slice; the same optimiser.",
            *work_notes(
                "convolutions and products of a step, forward and backward, as counted while it ran",
                "on a CPU d2_covid convolves the feature map once, where the mask head began with each RoI",
                bench.device,
            ),
        ],
    )


def classifier_training(bench: Bench) -> Section:
    """One update of module S and the BatchNorm weights, the paper's batch, the samples in memory."""
    cfg = bench.classifier_cfg
    size = 2 if bench.settings.quick else cfg.SOLVER.IMS_PER_BATCH
    steps = {name: make() for name, make in classifier_steps(cfg, bench.state, bench.images, size).items()}
    seconds = interleave(
        steps, repeats=bench.settings.repeats, warmup=1, budget=8 if bench.settings.quick else 30, device=bench.device
    )
    return timed_section(
        "classifier-training",
        f"a training step of the classifier, batch {size}: module S and the BatchNorm weights",
        seconds,
        reference=TORCHVISION,
        unit="step",
    )


def training_variants(cfg: CfgNode) -> dict[str, tuple[CfgNode, Callable[[CfgNode], nn.Module]]]:
    """By candidate's name its config, and what builds the model from it: Detectron2's plain parts, and d2_covid's."""
    return {PLAIN: (plain_parts(cfg), build_model), TRAINING: (cfg, build_for_device)}


def training_steps(cfg: CfgNode, state: State, samples: Sequence[dict]) -> dict[str, Callable[[], Work]]:
    """By candidate's name, what builds the model and gives its training step on ``samples``, one after another."""
    device = cfg.MODEL.DEVICE

    def torchvision_step() -> Work:
        peer = build_torchvision_peer(cfg)
        peer.load_state_dict(convert_to_torchvision(state, cfg))
        peer.to(device).train()

        def losses(batch: list[dict]) -> dict[str, torch.Tensor]:
            targets = [{key: value.to(device) for key, value in one.items()} for one in as_peer_targets(batch)]
            return peer(as_peer_images([x["image"].to(device) for x in batch]), targets)

        return step_of(cfg, peer, losses, samples)

    return {TORCHVISION: torchvision_step, **_own_steps(cfg, state, samples, 1)}


def classifier_steps(
    cfg: CfgNode, state: State, images: Sequence[torch.Tensor], batch_size: int
) -> dict[str, Callable[[], Work]]:
    """The same for the classifier, on images (3, h, w) of each class in turn.

    Args:
        state: weights of the segmentation model; module S is seeded.
    """
    state = build_with(plain_parts(cfg), state).state_dict()
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    samples = [{"image": image, "image_class": number % classes} for number, image in enumerate(images)]

    def torchvision_step() -> Work:
        peer = TorchvisionClassifier(cfg)
        peer.load_detectron2({name: value.cpu() for name, value in state.items()}, cfg)
        peer.to(cfg.MODEL.DEVICE).train()
        return step_of(cfg, peer, peer, samples, batch_size)

    return {TORCHVISION: torchvision_step, **_own_steps(cfg, state, samples, batch_size)}


def _own_steps(cfg: CfgNode, state: State, samples: Sequence[dict], batch_size: int) -> dict[str, Callable[[], Work]]:
    def step(own_cfg: CfgNode, build: Callable[[CfgNode], nn.Module]) -> Work:
        model = build(own_cfg)
        model.load_state_dict(state)
        return step_of(own_cfg, model.train(), model, samples, batch_size)

    return {
        name: (lambda own_cfg=own_cfg, build=build: step(own_cfg, build))
        for name, (own_cfg, build) in training_variants(cfg).items()
    }


def step_of(
    cfg: CfgNode,
    model: nn.Module,
    losses_of: Callable[[list[dict]], dict[str, torch.Tensor]],
    samples: Sequence[dict],
    batch_size: int = 1,
) -> Work:
    """One update of ``model`` from the samples whose turn it is; a step draws its RoIs from its number alone."""
    optimizer = build_optimizer(cfg, model)

    def step(number: int) -> float:
        batch = [samples[(number * batch_size + i) % len(samples)] for i in range(batch_size)]
        seed_everything(number)
        with EventStorage():
            total = sum(losses_of(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return step


def crowded_sample(cfg: CfgNode, lesions: int, size: int) -> dict:
    """A mapped training sample: a synthetic slice with so many lesions."""
    gray, mask = many_lesions(lesions, size)
    found, _ = lesion_components(mask, "merge", min_area=0)
    instances = Instances((size, size))
    instances.gt_masks = BitMasks(torch.stack([torch.from_numpy(lesion.mask) for lesion in found]))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.zeros(len(found), dtype=torch.int64)
    return {"image": network_input(gray, size, size), "instances": instances, "height": size, "width": size}
