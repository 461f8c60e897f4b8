"""The command ``d2-covid``, and how commands end."""

import argparse
import importlib.metadata
import os
import signal
import subprocess
import sys
import time

import d2_covid
import d2_covid_entry
from d2_covid.cli import main, parse_with_overrides, run_command
from d2_covid.errors import UserError

import pytest


def _without(package: str, *arguments: str) -> subprocess.CompletedProcess:
    code = (
        f"import sys; sys.modules[{package!r}] = None; import d2_covid_entry; "
        f"sys.argv[1:] = {list(arguments)!r}; sys.exit(d2_covid_entry.main())"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_doctor_reports_versions_device_and_compat(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["d2-covid", "doctor"])
    assert d2_covid_entry.main() == 0
    report = capsys.readouterr().out
    for fact in (d2_covid.__version__, "detectron2", "torch", "device", "compat", "ready"):
        assert fact in report


@pytest.mark.parametrize("package", ["pycocotools", "scipy"])
def test_doctor_says_what_is_missing(package, monkeypatch):
    real = d2_covid_entry._version
    monkeypatch.setattr(d2_covid_entry, "_version", lambda name: None if name == package else real(name))
    report, healthy = d2_covid_entry.doctor()
    assert not healthy
    assert f"MISSING: pip install {package}" in report and "NOT READY" in report


@pytest.mark.parametrize(("extra", "package"), [("dicom", "pylibjpeg-openjpeg"), ("dev", "pytest-xdist")])
def test_doctor_says_what_an_extra_lacks(extra, package, monkeypatch):
    real = d2_covid_entry._version
    monkeypatch.setattr(d2_covid_entry, "_version", lambda name: None if name == package else real(name))
    report, healthy = d2_covid_entry.doctor()
    assert healthy
    (line,) = [line for line in report.splitlines() if line.startswith(f"extra {extra}")]
    assert f"not installed: {package}; pip install -e '.[{extra}]'" in line


def test_doctor_works_where_d2_covid_is_not_installed(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert d2_covid_entry.doctor()[1]


def test_doctor_works_without_detectron2():
    result = _without("detectron2", "doctor")
    assert result.returncode == 2 and result.stderr == ""
    assert "DOES NOT IMPORT: d2_covid needs Detectron2" in result.stdout


def _where_torch_raises(error: str, *arguments: str) -> subprocess.CompletedProcess:
    code = f"""
import sys
class Broken:
    def find_spec(self, name, *_):
        if name == "torch":
            raise {error}
sys.meta_path.insert(0, Broken())
import d2_covid_entry
sys.argv[1:] = {list(arguments)!r}
sys.exit(d2_covid_entry.main())
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["OSError", "ImportError", "RuntimeError", "ValueError", "AttributeError"])
def test_doctor_works_where_torch_does_not_import(kind):
    result = _where_torch_raises(f"{kind}('libcudart.so.12: cannot open\\nshared object file')", "doctor")
    assert result.returncode == 2 and result.stderr == ""
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if "DOES NOT" in line)
    reason = "DOES NOT IMPORT: libcudart.so.12: cannot open shared object file"
    assert lines == {"torch": reason, "d2_covid": reason}
    assert "NOT READY" in result.stdout and "extra " in result.stdout


def test_other_commands_where_torch_does_not_import_say_one_line():
    result = _where_torch_raises("OSError('libcudart.so.12: cannot open')", "predict", "slice.png")
    assert (result.returncode, result.stderr) == (2, "error: libcudart.so.12: cannot open\n")


def test_a_torchvision_without_operators_is_not_ready(monkeypatch):
    def nms(*arguments):
        raise RuntimeError("Couldn't load custom C++ ops.\nThis can happen ...")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    text, healthy = d2_covid_entry.doctor()
    assert not healthy and "DOES NOT FIT THIS TORCH: Couldn't load custom C++ ops. This can happen ..." in text
    assert "NOT READY" in text


def test_any_opencv_serves(monkeypatch):
    def version(name):
        if name != "opencv-contrib-python-headless":
            raise importlib.metadata.PackageNotFoundError(name)
        return "4.10.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert d2_covid_entry._version("opencv-python-headless") == "4.10.0"


def test_the_module_runs_the_same_doctor(capsys):
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == f"{d2_covid_entry.doctor()[0]}\n"


def test_other_commands_without_detectron2_say_one_line():
    result = _without("detectron2", "predict", "slice.png")
    assert result.returncode == 2
    assert result.stderr.startswith("error: d2_covid needs Detectron2") and result.stderr.count("\n") == 1


def test_a_package_that_a_command_lacks_is_named_in_one_line():
    result = _without("scipy", "predict", "slice.png", "-o", "out")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: scipy") and "d2-covid doctor" in result.stderr


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "doctor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "files", "opts"),
    [
        (["--files", "a", "b", "MODEL.DEVICE", "cpu", "SEED", "1"], ["a", "b"], ["MODEL.DEVICE", "cpu", "SEED", "1"]),
        (["--files", "NCP", "CP"], ["NCP", "CP"], []),
        (["--files", "IM1.JPG", "IM2.JPG"], ["IM1.JPG", "IM2.JPG"], []),
        (["--files", "A.JSON", "B.JSON", "TEST.FAST", "False"], ["A.JSON", "B.JSON"], ["TEST.FAST", "False"]),
        (["--files", "a", "MODEL.NO_SUCH", "1"], ["a"], ["MODEL.NO_SUCH", "1"]),
        (["--files", "a", "--one", "x", "INPUT.MIN_SIZE_TEST", "-1"], ["a"], ["INPUT.MIN_SIZE_TEST", "-1"]),
        (["--files", "a", "--", "OUTPUT_DIR", "x"], ["a"], ["OUTPUT_DIR", "x"]),
        (["OUTPUT_DIR", "x"], None, ["OUTPUT_DIR", "x"]),
        ([], None, []),
    ],
)
@pytest.mark.parametrize("kind", ["*", argparse.REMAINDER])
def test_overrides_at_the_end_are_told_from_what_an_option_takes(words, files, opts, kind):
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", nargs="+")
    parser.add_argument("--one")
    parser.add_argument("opts", nargs=kind)
    args = parse_with_overrides(parser, words)
    assert (args.files, list(args.opts)) == (files, opts)


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize(
    "error, status, message",
    [(UserError("no such slice"), 2, "error: no such slice\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_errors_end_a_command_in_one_line(error, status, message, capsys):
    assert run_command(lambda: _raise(error)) == status
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_ended_cleans_up_first(name, capsys):
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(10)
        finally:
            cleaned.append(True)

    before = signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        assert run_command(work) == 130 and cleaned == [True]
    finally:
        signal.signal(getattr(signal, name), before)
    assert capsys.readouterr().err == "interrupted\n"


def test_every_command_heeds_the_cores_that_it_may_use(monkeypatch):
    said = []
    monkeypatch.setattr("d2_covid.cli.limit_threads", lambda: said.append("limited"))
    assert run_command(lambda: said.append("ran")) == 0 and said == ["limited", "ran"]


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_success_is_zero():
    assert run_command(lambda: None) == 0
