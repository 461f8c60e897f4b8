"""An installed d2_covid has every file that a checkout has."""

import subprocess
import sys


def test_every_config_template_and_schema_is_shipped(repository, tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)

    def files(folder, *patterns):
        return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.rglob(pattern)}

    built = tmp_path / "d2_covid"
    assert files(built / "configs", "*.yaml") == files(repository / "configs", "*.yaml") != set()
    kinds = ("*.html", "*.json", "*.py")
    assert files(repository / "d2_covid", *kinds) <= files(built, *kinds)
    assert (tmp_path / "d2_covid_entry.py").is_file()
