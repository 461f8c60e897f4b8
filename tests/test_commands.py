"""The command ``d2-covid``, and how commands end."""

import subprocess
import sys

import d2_covid
import d2_covid_entry
from d2_covid.cli import main, run_command
from d2_covid.errors import UserError

import pytest


def _without_detectron2(*arguments: str) -> subprocess.CompletedProcess:
    code = (
        "import sys; sys.modules['detectron2'] = None; import d2_covid_entry; "
        f"sys.argv[1:] = {list(arguments)!r}; sys.exit(d2_covid_entry.main())"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_doctor_reports_versions_device_and_compat(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["d2-covid", "doctor"])
    assert d2_covid_entry.main() == 0
    report = capsys.readouterr().out
    for fact in (d2_covid.__version__, "detectron2", "torch", "device", "compat", "ready"):
        assert fact in report


def test_doctor_says_what_is_missing(monkeypatch):
    real = d2_covid_entry._version
    monkeypatch.setattr(d2_covid_entry, "_version", lambda name: None if name == "pycocotools" else real(name))
    report, healthy = d2_covid_entry.doctor()
    assert not healthy
    assert "MISSING: pip install pycocotools" in report and "NOT READY" in report


def test_doctor_works_without_detectron2():
    result = _without_detectron2("doctor")
    assert result.returncode == 2 and result.stderr == ""
    assert "DOES NOT IMPORT: d2_covid needs Detectron2" in result.stdout


def test_other_commands_without_detectron2_say_one_line():
    result = _without_detectron2("predict", "slice.png")
    assert result.returncode == 2
    assert result.stderr.startswith("error: d2_covid needs Detectron2") and result.stderr.count("\n") == 1


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "doctor" in capsys.readouterr().out


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize(
    "error, status, message",
    [(UserError("no such slice"), 2, "error: no such slice\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_errors_end_a_command_in_one_line(error, status, message, capsys):
    assert run_command(lambda: _raise(error)) == status
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_success_is_zero():
    assert run_command(lambda: None) == 0
