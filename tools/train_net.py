#!/usr/bin/env python
"""Trains a model, resumes its training, or evaluates it.

    python tools/train_net.py --config-file configs/segmentation/mask_rcnn_R_18_T1_FPN.yaml OUTPUT_DIR output/r18_t1
    python tools/train_net.py --config-file ... --resume OUTPUT_DIR output/r18_t1
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/r18_t1/model_best.pth

Options come before the overrides, KEY VALUE.

Exit status: 0 done, 2 bad input (one line on stderr says what and how to mend it).
"""

import argparse
import sys
from typing import Sequence

from d2_covid import get_config
from d2_covid.cli import parse_with_overrides, run_command
from d2_covid.data.registration import add_registration_options, register_named
from d2_covid.engine.children import end_own
from d2_covid.engine.run import run_evaluation, run_training
from d2_covid.engine.schedule import scale_to_processes
from d2_covid.engine.setup import choose_device
from d2_covid.engine.unused_keys import check_evaluation_keys, check_training_keys, check_typed_keys
from d2_covid.errors import UserError

import torch
from detectron2.engine import default_argument_parser, launch

_HELP = {
    "resume": "go on from the last checkpoint in OUTPUT_DIR, if there is one; with --eval-only, evaluate that one",
    "opts": "config overrides at the end: KEY VALUE ...",
}
"""In the place of Detectron2's words, which tell of classes and configs that are not used here."""


def build_parser() -> argparse.ArgumentParser:
    """Detectron2's own arguments, and ours."""
    parser = default_argument_parser(epilog=__doc__)
    for action in parser._actions:
        action.help = _HELP.get(action.dest, action.help)
    parser.description = "Train, resume or evaluate a model of d2_covid. Research software: not a medical device."
    add_registration_options(parser, "DATASETS.TRAIN or TEST")
    parser.add_argument("--progress", action="store_true", help="show a progress bar, as on a terminal")
    return parser


def work(args: argparse.Namespace) -> int:
    """What each process does: register, then train or evaluate. Returns its exit status."""
    return run_command(lambda: _work(args))


def _work(args: argparse.Namespace) -> None:
    cfg = get_config(args.config_file, args.opts)
    choose_device(cfg, args.opts)
    register_named(args)
    if args.eval_only:
        check_evaluation_keys(cfg)
        results = run_evaluation(cfg, resume=args.resume, command=args.command)
    else:
        check_typed_keys(cfg, args.opts, args.config_file)
        results = run_training(cfg, resume=args.resume, progress=args.progress or None, command=args.command)
    width = max(map(len, results), default=0)
    for name, value in results.items():
        print(f"{name:<{width}}  {value:.4g}")


def _worker(args: argparse.Namespace) -> None:
    # What a spawned process returns is lost; its exit status is not.
    status = work(args)
    if status == 0:  # after a failure the others may not come to it
        torch.distributed.destroy_process_group()
    sys.exit(status)


def check_launch(args: argparse.Namespace) -> None:
    """Refuse here, once, what every process would refuse (:class:`~d2_covid.errors.UserError`)."""
    cfg = get_config(args.config_file, args.opts)
    if cfg.MODEL.DEVICE != "cuda":
        raise UserError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but each of several processes has a GPU: leave it cuda.")
    if args.eval_only:
        check_evaluation_keys(cfg)
    else:
        check_typed_keys(cfg, args.opts, args.config_file)
        check_training_keys(cfg)
        scale_to_processes(cfg, args.num_gpus * args.num_machines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; starts one process per GPU where several are asked for."""
    command = [sys.argv[0], *(sys.argv[1:] if argv is None else argv)]
    args = parse_with_overrides(build_parser(), argv)
    args.command = command
    if args.num_gpus * args.num_machines <= 1:
        return work(args)
    if args.num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus {args.num_gpus}, but PyTorch finds {torch.cuda.device_count()} on this machine.")
    check_launch(args)
    try:
        launch(_worker, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code < 0:
            raise UserError(f"A process of the run was ended from outside ({error}), as by lack of memory.") from error
        return error.exit_code  # the process has said why
    except KeyboardInterrupt:  # the others may not have got the signal
        end_own()
        raise
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
