"""Where the command ``d2-covid`` starts. Outside the package, which cannot be imported where Detectron2 is missing:
there, `d2-covid doctor` still has to say so."""

import importlib.metadata
import platform
import re
import sys

SHOWN = ("torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "pycocotools", "fvcore", "iopath")
"""Of what is required, those whose versions decide most; others are named where they are missing."""
# OpenCV goes by several names on PyPI; any of them serves.
ALTERNATIVES = {
    "opencv-python-headless": (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python-headless",
        "opencv-contrib-python",
    )
}
# What an import raises, also where a library that a package was built against is not there (PyTorch: OSError) or is of
# another build (torchvision: RuntimeError).
FAILED = (ImportError, OSError, RuntimeError)
# And what one raises that was built for another NumPy.
BROKEN = (*FAILED, ValueError, AttributeError)


def _version(name: str) -> str | None:
    for candidate in ALTERNATIVES.get(name, (name,)):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _requirements() -> dict[str, list[str]]:
    """Names of packages by extra, "" for what is required, as the installed d2_covid lists them."""
    try:
        listed = importlib.metadata.requires("d2_covid") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return {"": list(SHOWN)}
    names: dict[str, list[str]] = {"": []}
    for line in listed:
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        names.setdefault(extra[1] if extra else "", []).append(re.match(r"[\w.-]+", line)[0])
    names.pop("all", None)
    return names


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"cuda: {', '.join(names)}"
    return f"cpu, {torch.get_num_threads()} threads ({torch.backends.cpu.get_cpu_capability()})"


def _try_operators() -> None:
    """Use one of torchvision's compiled operators, which imports without them (:data:`FAILED`)."""
    import torch
    from torchvision.ops import nms

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)


def doctor() -> tuple[str, bool]:
    """What is installed, what compat had to do, and what is missing.

    Returns:
        The report, one fact a line, and whether d2_covid can run here.
    """
    requirements = _requirements()
    versions = {name: _version(name) for name in dict.fromkeys([*SHOWN, *requirements.pop("")])}
    lines = [("python", f"{platform.python_version()} on {platform.platform()}")]
    shown = [name for name, version in versions.items() if name in SHOWN or version is None]
    lines += [(name, versions[name] or "MISSING: pip install " + name) for name in shown]
    healthy = None not in versions.values()
    if versions["torch"] is not None:
        try:
            lines.append(("device", _device()))
        except BROKEN as error:
            healthy = False
            lines.append(("torch", _does_not_import(error)))
        else:
            try:
                _try_operators()
            except BROKEN as error:
                healthy = False
                lines.append(("torchvision", f"DOES NOT FIT THIS TORCH: {_one_line(error)}"))
    try:
        import d2_covid
        from d2_covid import compat
    except BROKEN as error:
        healthy = False
        lines.append(("d2_covid", _does_not_import(error)))
    else:
        import detectron2

        root = compat.detectron2_root()
        compiled = "with compiled operators" if compat.has_compiled_ops(root) else "without compiled operators"
        lines.insert(1, ("d2_covid", d2_covid.__version__))
        lines.insert(2, ("detectron2", f"{detectron2.__version__} {compiled}, {root}"))
        lines.append(("compat", f"supplied {', '.join(compat.applied)}" if compat.applied else "nothing to do"))
    for extra, names in requirements.items():
        absent = [name for name in names if _version(name) is None]
        state = f"not installed: {', '.join(absent)}; pip install -e '.[{extra}]'" if absent else "complete"
        lines.append((f"extra {extra}", state))
    lines.append(("verdict", "ready" if healthy else "NOT READY: see the lines in capitals, and INSTALL.md"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines), healthy


def _does_not_import(error: Exception) -> str:
    return f"DOES NOT IMPORT: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def run_doctor() -> int:
    """Print :func:`doctor`'s report; exit status 0, or 2 where d2_covid cannot run."""
    text, healthy = doctor()
    print(text)
    return 0 if healthy else 2


def main() -> int:
    """Run ``d2-covid``; without Detectron2, or another package, say in one line what to run, exit status 2."""
    if sys.argv[1:] == ["doctor"]:
        return run_doctor()
    try:
        try:
            from d2_covid.cli import main as command
        except ModuleNotFoundError:
            raise
        except FAILED as error:  # d2_covid's own, of Detectron2, or a library's
            return _refuse(_one_line(error))
        return command()
    except ModuleNotFoundError as error:
        if (error.name or "d2_covid").partition(".")[0] == "d2_covid":
            raise  # a fault of ours
        return _refuse(f"{error.name} is not installed; `d2-covid doctor` lists what is missing.")


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
