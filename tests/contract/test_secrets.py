"""Secrets reach the task that is to have them, and nobody and nothing else; searched for everywhere."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.harness import MakeProject, RunLocal

VALUE = "hunter2-" + uuid.uuid4().hex

FLOW = """
    import base64
    import hashlib
    import os
    import pathlib
    import sys
    import time

    from executor import Mount, Resources, Secret, TaskEnvironment

    small = Resources(cpu=0.2, memory="128Mi")
    leaf = TaskEnvironment(
        "leaf", resources=small, secrets=["RL_TOKEN", Secret("RL_TOKEN", as_env_var="OTHER")],
        mounts=[Mount(SHARED)] if SHARED else [],
    )
    root = TaskEnvironment("root", resources=small, depends_on=[leaf])
    files = TaskEnvironment(
        "files", image="envs/leaf/environment.yml", resources=small,
        secrets=[Secret("RL_TOKEN", group="hub", mount="/etc/flyte/secrets")],
    )


    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()


    @leaf.task
    def told(marker: str) -> list:
        token = os.environ["RL_TOKEN"]
        sys.stdout.write(f"token: {token[:9]}")
        sys.stdout.flush()
        time.sleep(0.05)
        sys.stdout.write(f"{token[9:]}\\n")
        os.write(2, f"{base64.b64encode(token.encode()).decode()} {[token]!r}\\n".encode())
        while not os.path.exists(marker):
            time.sleep(0.02)
        return [digest(token), os.environ["OTHER"] == token]


    @leaf.task
    def fail() -> None:
        token = os.environ["RL_TOKEN"]
        raise ValueError(f"the server does not like {token}")


    @root.task
    def look() -> list:
        return [name for name, value in os.environ.items() if name in ("RL_TOKEN", "OTHER")]


    @root.task
    def both(marker: str) -> list:
        seen = look()
        return [told(marker), seen, look()]


    @root.task
    def survive() -> str:
        try:
            fail()
        except Exception as exc:
            return f"{exc} / {exc.original!r}"
        return ""


    @files.task
    def from_a_file() -> list:
        path = pathlib.Path("/etc/flyte/secrets/hub/RL_TOKEN")
        return [digest(path.read_text()), path.stat().st_mode & 0o777, "HUB_RL_TOKEN" in os.environ]


    @files.task
    def nothing_else() -> list:
        return sorted(os.listdir("/etc/flyte/secrets/hub"))
"""

SPECS = {name: ["python >=3.10"] for name in ("leaf", "root")}


@pytest.fixture
def value(home: Path) -> str:
    """A secret of this session's home."""
    for name in ("RL_TOKEN", "hub/RL_TOKEN"):
        path = home / "secrets" / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(VALUE + "\n")
        path.chmod(0o600)
    return VALUE


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that tasks see as it is; not below /tmp, which is a task's own."""
    folder = Path(tempfile.mkdtemp(prefix="rl-secrets-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def occurrences(needle: bytes, folder: Path) -> list[str]:
    """The files below a folder that hold some bytes, apart from those of the secrets."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.parts[len(folder.parts)] != "secrets":
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    if needle in chunk:
                        found.append(str(path))
    return found


def processes_that_show(needle: bytes) -> list[str]:
    """Processes of this machine whose arguments or variables hold some bytes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            known = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if needle in known:
            found.append(str(folder))
    return found


def test_a_secret_is_nowhere_but_in_its_task(
    run_local: RunLocal,
    project: MakeProject,
    runtime: str,
    value: str,
    shared: Path,
    request: pytest.FixtureRequest,
) -> None:
    """While the task runs: no argument or variable of any process, no configuration; afterwards: no file, no output."""
    root = project({"flow.py": FLOW.replace("SHARED", repr(str(shared)))}, SPECS)
    marker = shared / "go on"
    running = run_local.start("both", "--marker", str(marker), "--runtime", runtime, "--json", "-v", cwd=root)
    stderr = b""
    assert running.stderr is not None
    for line in running.stderr:
        stderr += line.encode()
        if "***" in line:
            break
    assert processes_that_show(value.encode()) == []
    assert processes_that_show(root.name.encode())
    slots = []
    if runtime == "docker":
        engine: docker.DockerClient = request.getfixturevalue("engine")
        for each in engine.api.containers(all=True, filters={"label": "run-local=slot"}):
            try:
                assert value not in json.dumps(engine.api.inspect_container(each["Id"]))
                exported = io.BytesIO(b"".join(engine.api.export(each["Id"])))
            except docker.errors.NotFound:  # another session's
                continue
            assert value.encode() not in exported.getvalue()
            slots.append(each)
    assert bool(slots) == (runtime == "docker")
    marker.touch()
    out, err = running.communicate(timeout=120)
    stderr += err.encode()
    document = json.loads(out)
    assert document["status"] == "succeeded", stderr
    told, before, after = document["result"]
    assert told == [hashlib.sha256(value.encode()).hexdigest(), True]
    assert before == after == []
    log = run_local("logs", document["run"], cwd=root).stdout
    assert "token: ***" in log
    for form in (value, base64.b64encode(value.encode()).decode().rstrip("=")):
        assert form not in out + stderr.decode() + log
        assert occurrences(form.encode(), run_local.home) == []
        assert occurrences(form.encode(), root) == []


def test_a_failure_does_not_tell_a_secret(run_local: RunLocal, project: MakeProject, runtime: str, value: str) -> None:
    """Neither the message nor the traceback, the record, the document or what the caller catches holds it."""
    root = project({"flow.py": FLOW.replace("SHARED", "None")}, SPECS)
    caught = run_local("survive", "--runtime", runtime, "--json", cwd=root)
    assert "the server does not like *** / None" in caught.document["result"]
    failed = run_local("fail", "--runtime", runtime, "--json", cwd=root)
    assert failed.code == 1
    assert failed.document["error"]["message"] == "the server does not like ***"
    shown = run_local("show", failed.document["run"], "--json", cwd=root)
    for text in (caught.stdout, caught.stderr, failed.stdout, failed.stderr, shown.stdout):
        assert value not in text
    assert occurrences(value.encode(), run_local.home) == []


@pytest.mark.docker
def test_a_secret_can_be_a_file_in_a_container(
    run_local: RunLocal, project: MakeProject, engine: docker.DockerClient, value: str
) -> None:
    """Where Flyte puts it, readable by the task alone, in memory; a process has no such place, and says so first."""
    root = project({"flow.py": FLOW.replace("SHARED", "None")}, SPECS)
    finished = run_local("from_a_file", "--runtime", "docker", "--json", cwd=root)
    assert finished.code == 0, finished.stderr
    assert finished.document["result"][1:] == [0o400, False]
    assert run_local("nothing_else", "--runtime", "docker", "--json", cwd=root).document["result"] == ["RL_TOKEN"]
    refused = run_local("from_a_file", "--runtime", "process", cwd=root)
    assert refused.code == 4
    assert "secret `hub/RL_TOKEN` cannot be a file in `/etc/flyte/secrets`" in refused.stderr
    assert engine.ping()


def test_what_is_missing_is_said_before_anything_is_made(run_local: RunLocal, project: MakeProject, home: Path) -> None:
    """With both places where it could be, and what is to be done; and nothing is locked or built."""
    root = project({"flow.py": FLOW.replace("SHARED", "None").replace("RL_TOKEN", "RL_MISSING")}, SPECS)
    refused = run_local("fail", "--runtime", "process", cwd=root)
    assert refused.code == 4
    assert f"neither a variable `RL_MISSING` nor a file `{home}/secrets/RL_MISSING`" in refused.stderr
    assert "install -D -m 600 /dev/stdin" in refused.stderr
    assert not (root / "envs/leaf/conda-lock.yml").exists()
    assert os.environ.get("RL_MISSING") is None
    given = run_local("fail", "--runtime", "process", cwd=root, env={"RL_MISSING": "a-value-of-the-caller"})
    assert given.code == 1
    assert "the server does not like ***" in given.stderr
