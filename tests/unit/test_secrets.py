"""Where secrets are looked for, and what is refused: by name, with what to do, and never with the value."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from executor.authoring import Secret, TaskEnvironment
from executor.errors import MachineError, ProjectError
from executor.manifest import EnvironmentEntry, Manifest, SecretEntry, Shape
from executor.secrets import Secrets, find_secrets, read_secret

TOKEN = SecretEntry(key="hf-token", group=None, variable="HF_TOKEN", file=False)
OF_A_GROUP = SecretEntry(key="token", group="hub", variable="HUB_TOKEN", file=False)
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


def write(home: Path, name: str, text: str, mode: int = 0o600) -> Path:
    """A file of a secret."""
    path = home / "secrets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    path.chmod(mode)
    return path


def manifest(**secrets: tuple[SecretEntry, ...]) -> Manifest:
    """A project whose environments have these secrets."""
    entries = {
        name: EnvironmentEntry(
            name=name,
            image=None,
            depends_on=(),
            extends=(),
            shape=SHAPE,
            env_vars={},
            file="flow.py",
            line=5,
            secrets=each,
        )
        for name, each in secrets.items()
    }
    return Manifest(root="/p", import_roots=(".",), environments=entries, tasks={})


def test_a_variable_of_the_caller_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the file of its name; the end of its last line is not part of it, and all else is."""
    write(tmp_path, "hf-token", "  from a\nfile \n")
    assert read_secret(TOKEN, tmp_path) == "  from a\nfile "
    monkeypatch.setenv("HF_TOKEN", "from the caller")
    assert read_secret(TOKEN, tmp_path) == "from the caller"


def test_a_group_is_a_folder_and_begins_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same key of two groups is two secrets."""
    write(tmp_path, "hub/token", "of the hub")
    write(tmp_path, "token", "of nobody")
    assert read_secret(OF_A_GROUP, tmp_path) == "of the hub"
    monkeypatch.setenv("HUB_TOKEN", "of the caller")
    assert read_secret(OF_A_GROUP, tmp_path) == "of the caller"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """With the command that puts it right."""
    path = write(tmp_path, "hf-token", "hunter2-token", mode)
    with pytest.raises(MachineError) as refused:
        read_secret(TOKEN, tmp_path)
    assert refused.value.what == f"secret `hf-token`: others may read `{path}` (mode {mode:04o})"
    assert refused.value.hint == f"`chmod 600 {path}`"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abc\n", "has fewer than 4 characters"),
        ("x" * 70_000, "no text of at most 64 KiB"),
        ("ab\0cd", "no text of at"),
    ],
)
def test_what_cannot_be_told_or_masked_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A value that is too short to be masked, too long, or no text."""
    write(tmp_path, "hf-token", text)
    with pytest.raises(MachineError, match=said) as refused:
        read_secret(TOKEN, tmp_path)
    assert text.strip() not in str(refused.value)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    """Of every environment, with where it was looked for."""
    with pytest.raises(MachineError) as refused:
        find_secrets(manifest(gpu=(TOKEN,), web=(OF_A_GROUP,)), ["gpu", "web"], "docker", tmp_path)
    assert str(refused.value) == (
        "secrets cannot be told to tasks\n"
        "  why: `gpu` (flow.py:5): secret `hf-token` is not on this machine: neither a variable `HF_TOKEN` nor a file "
        f"`{tmp_path}/secrets/hf-token`\n"
        "       `web` (flow.py:5): secret `hub/token` is not on this machine: neither a variable `HUB_TOKEN` nor a file "
        f"`{tmp_path}/secrets/hub/token`\n"
        f"  hint: set the variable, or write it to that file: `install -D -m 600 /dev/stdin {tmp_path}/secrets/hf-token`\n"
        f"        set the variable, or write it to that file: `install -D -m 600 /dev/stdin {tmp_path}/secrets/hub/token`"
    )


def test_a_process_cannot_be_given_a_file(tmp_path: Path) -> None:
    """It sees this machine's own `/etc`."""
    file = SecretEntry(key="token", group=None, variable=None, file=True)
    write(tmp_path, "token", "hunter2-token")
    assert find_secrets(manifest(gpu=(file,)), ["gpu"], "docker", tmp_path)["gpu"].reveal()["files"] == {
        "token": "hunter2-token"
    }
    with pytest.raises(MachineError, match="cannot be a file"):
        find_secrets(manifest(gpu=(file,)), ["gpu"], "process", tmp_path)


def test_secrets_do_not_show_themselves() -> None:
    """Neither to a person nor to a pickle."""
    secrets = Secrets({"HF_TOKEN": "hunter2-token"})
    assert repr(secrets) == "Secrets(['HF_TOKEN'])"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secrets)


def test_the_variable_is_made_of_group_and_key() -> None:
    """As Flyte does it."""
    assert Secret("hf-token").variable == "HF_TOKEN"
    assert Secret("token", group="my-hub").variable == "MY_HUB_TOKEN"
    assert Secret("token", as_env_var="OTHER").variable == "OTHER"
    assert Secret("token", mount="/etc/flyte/secrets").variable is None
    assert TaskEnvironment("a", secrets="one").secrets == ["one"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": "../passwd"}, "the key of a secret cannot be '../passwd'"),
        ({"key": "a", "group": "b/c"}, "the group of a secret cannot be 'b/c'"),
        ({"key": "a", "mount": "/run/secrets"}, "secret `a` cannot be mounted at `/run/secrets`"),
        ({"key": "a", "as_env_var": "lower"}, "secret `a` cannot be in a variable `lower`"),
        ({"key": "a.b"}, "secret `a.b` cannot be in a variable `A.B`"),
    ],
)
def test_what_names_no_secret_is_refused(wrong: dict[str, str], said: str) -> None:
    """Where it is declared."""
    with pytest.raises(ProjectError) as refused:
        Secret(**wrong)
    assert refused.value.what == said
