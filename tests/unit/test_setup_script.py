"""`scripts/setup` and `scripts/run-local`, with an interpreter whose venv and pip only write down what was asked."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from tests.harness import ROOT

INTERPRETER = """\
    #!/bin/bash
    # $RECORD takes what pip was asked; pip waits while $GATE is a pipe, and fails with $BROKEN
    case "$*" in
        *with-pip) [ -z "$NO_ENSUREPIP" ] && echo "$0" ;;
        *sys.executable*) echo "$0" ;;
        *"import pip"*) ;;
        *"-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
        *"-m pip install"*)
            echo "${@: -1}" >>"$RECORD"
            [ ! -p "$GATE" ] || read -r _ <"$GATE"
            echo "what pip says"
            [ -z "$BROKEN" ] || exit 1
            printf '#!/bin/sh\\necho "ran with $*"\\n' >"${0%/*}/run-local"
            chmod +x "${0%/*}/run-local"
            ;;
        *) exit 9 ;;
    esac
"""


@dataclass(frozen=True)
class Clone:
    """A copy of the scripts in a folder with a space in its name, and interpreters of its own."""

    root: Path
    variables: dict[str, str]

    @property
    def venv(self) -> Path:
        """Where it sets up."""
        return self.root / ".venv"

    @property
    def gate(self) -> Path:
        """While this pipe exists, pip waits for a line from it."""
        return Path(self.variables["GATE"])

    def start(self, script: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Start a script of the clone, from another folder."""
        return subprocess.Popen(
            [self.root / "scripts" / script, *arguments],
            cwd="/",
            env={**self.variables, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a script of the clone."""
        process = self.start(script, *arguments, **variables)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

    def installed(self) -> list[str]:
        """What pip was asked to install, call by call, by the name of the folder."""
        record = Path(self.variables["RECORD"])
        return [line.rpartition("/")[2] for line in record.read_text().splitlines()] if record.exists() else []

    def wait_for_pip(self, calls: int) -> None:
        """Until pip was started that often."""
        deadline = time.monotonic() + 30
        while len(self.installed()) < calls:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A clone that was never set up, seen by somebody who is not root and whose Pythons only pretend."""
    root, tools = tmp_path / "a clone", tmp_path / "tools"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    tools.mkdir()
    for name, text in (("python3", INTERPRETER), ("id", "#!/bin/sh\necho 1000\n")):
        (tools / name).write_text(dedent(text))
        (tools / name).chmod(0o755)
    for minor in range(10, 15):
        shutil.copy(tools / "python3", tools / f"python3.{minor}")
    hidden = {"PYTHONPATH", "PYTHONHOME", "NO_ENSUREPIP", "BROKEN"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables |= {"RECORD": str(tmp_path / "record"), "GATE": str(tmp_path / "gate"), "PATH": f"{tools}:/usr/bin:/bin"}
    return Clone(root, variables)


def test_first_call_sets_up_and_the_second_is_one_look(clone: Clone) -> None:
    """From any folder, in a path with a space; arguments arrive, and what is said is said on stderr."""
    code, stdout, stderr = clone.run("run-local", "alphafold_workflow", "--help")
    assert (code, stdout) == (0, "ran with alphafold_workflow --help\n")
    assert f"making {clone.venv}" in stderr
    assert "installing run-local into it" in stderr

    (clone.venv / "bin" / "python").chmod(0)  # nothing may start it any more
    assert clone.run("run-local") == (0, "ran with \n", "")
    assert clone.installed() == ["a clone"]


def test_another_requirement_or_another_extra_installs_again(clone: Clone) -> None:
    """The stamp holds what was installed; extras that were asked for once are kept."""
    clone.run("setup")
    clone.run("setup", "dev")
    assert clone.run("setup") == (0, "", "")
    (clone.root / "setup.cfg").write_text((clone.root / "setup.cfg").read_text() + "\n# changed\n")
    clone.run("setup")
    assert clone.run("setup", "dev") == (0, "", "")
    assert clone.installed() == ["a clone", "a clone[dev]", "a clone[dev]"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_set_up_is_started_over(clone: Clone, how: signal.Signals) -> None:
    """What was half made is not trusted: nothing of it is there after the next call."""
    os.mkfifo(clone.gate)
    process = clone.start("setup")
    clone.wait_for_pip(1)
    (clone.venv / "half").touch()
    os.killpg(process.pid, how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert ("interrupted; the next call starts over" in stderr) == (how == signal.SIGINT)

    clone.gate.unlink()
    assert clone.run("run-local")[:2] == (0, "ran with \n")
    assert not (clone.venv / "half").exists()


def test_two_set_ups_at_once_take_turns(clone: Clone) -> None:
    """The second waits, says so, and finds everything done."""
    os.mkfifo(clone.gate)
    first = clone.start("setup")
    clone.wait_for_pip(1)
    second = clone.start("run-local", "x")
    assert second.stderr is not None
    assert second.stderr.readline() == f"run-local: waiting for another set-up of {clone.venv}\n"
    clone.gate.write_text("\n")
    assert first.communicate(timeout=60)[0] == ""
    assert second.communicate(timeout=60) == ("ran with x\n", "")
    assert (first.returncode, second.returncode, clone.installed()) == (0, 0, ["a clone"])


def test_a_failing_pip_shows_what_it_said(clone: Clone) -> None:
    """Exit code 4, pip's own words, where the log is; and nothing is trusted."""
    code, stdout, stderr = clone.run("run-local", BROKEN="1")
    assert (code, stdout) == (4, "")
    assert "what pip says\nrun-local: the set-up failed; the next call starts over (log: " in stderr
    assert clone.run("run-local")[0] == 0
    assert clone.installed() == ["a clone"] * 2


def test_a_python_without_ensurepip_is_explained(clone: Clone) -> None:
    """Debian's python3 cannot make a venv; somebody who is not root is told the command."""
    script = clone.root / "scripts" / "setup"
    script.write_text(script.read_text().replace(" /usr/bin/python3;", ";"))  # this machine's own may well have it
    code, stdout, stderr = clone.run("run-local", NO_ENSUREPIP="1")
    assert (code, stdout) == (4, "")
    assert "tools/python3 cannot make a venv\n  hint: sudo apt-get install python3-venv" in stderr


def test_a_venv_that_was_moved_is_made_again(clone: Clone) -> None:
    """Scripts of a venv hold its path: a copied clone must not run the programs of the other one."""
    clone.run("setup")
    copy = Clone(clone.root.with_name("copy"), clone.variables)
    shutil.copytree(clone.root, copy.root, symlinks=True)
    assert copy.run("run-local")[:2] == (0, "ran with \n")
    assert copy.installed() == ["a clone", "copy"]


def test_a_venv_of_somebody_elses_is_used_and_never_removed(clone: Clone) -> None:
    """Even if installing into it fails."""
    (clone.venv / "bin").mkdir(parents=True)
    shutil.copy(clone.root.parent / "tools" / "python3", clone.venv / "bin" / "python")
    (clone.venv / "theirs").touch()
    assert clone.run("run-local", BROKEN="1")[0] == 4
    assert clone.run("run-local")[:2] == (0, "ran with \n")
    assert (clone.venv / "theirs").exists()
