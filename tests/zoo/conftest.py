"""Records such as trainings leave, made up."""

import pytest


@pytest.fixture
def record():
    """``record(recipe="tuned", model=..., start=..., seed=..., ap50=..., status=..., **facts)``: a finished one."""

    def make(recipe="tuned", model="R18-T1", start="scratch", seed=1, ap50=30.0, status="finished", **facts):
        name = f"{recipe}-{model}-{start}-s{seed}"
        figures = {"segm/AP": ap50 / 3, "segm/AP50": ap50, "segm/AP75": 1.0, "bbox/AP": 9.0, "bbox/AP50": 31.0}
        figures |= {"paper_ap/AP": 20.0, "union/dice": 0.5, "union/pooled_dice": 0.6}
        made = {
            "schema_version": 1,
            "name": name,
            "kind": "lesion",
            "recipe": recipe,
            "model": model,
            "start": start,
            "seed": seed,
            "config": "configs/segmentation/tuned/mask_rcnn_R_18_T1_FPN.yaml",
            "opts": [],
            "command": f"python tools/train_net.py {name}",
            "status": status,
            "jobs": 6,
            "seconds": 100.0,
            "step_seconds": 80.0,
            "parameters": 6_050_000,
            "training_slices": 496,
            "iterations": 1116,
            "max_iter": 1116,
            "batch": 4,
            "device": "NVIDIA X",
            "versions": {"torch": "2.0"},
            "data": {
                "train": [{"name": "zoo_merge_train", "slices": 496, "patients": 9, "lesions": 838}],
                "test": [{"name": "zoo_merge_val", "slices": 125, "patients": 4, "lesions": 316}],
            },
            "weights_sha256": "0" * 64,
            "metrics": {n: {"value": v, "low": v * 0.5, "high": v * 1.5} for n, v in figures.items()},
        }
        if status != "finished":
            made["iterations"] = 500
            for key in ("metrics", "parameters", "weights_sha256"):
                del made[key]
        return {**made, **facts}

    return make
