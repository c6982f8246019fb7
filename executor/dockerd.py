"""The only door to the Docker engine: how it is reached, what its errors mean, what is read of its events.

The SDK and the engine's socket, never a client program. Everything of ours on an engine carries `LABEL`. Podman answers
to the same requests; where it understands them differently, `Kind` says that it is Podman.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from docker.types import Mount
from requests.exceptions import ConnectionError as NOT_CONNECTED
from requests.exceptions import RequestException, Timeout

from executor.errors import MachineError

LABEL = "run-local"

__all__ = [
    "LABEL",
    "NOT_CONNECTED",
    "APIError",
    "ImageNotFound",
    "Kind",
    "Watch",
    "again",
    "bind",
    "connect",
    "container",
    "kind_of",
    "load",
    "output_of",
    "save",
    "translated",
]

T = TypeVar("T")

_EVENTS = ("oom", "kill", "die", "destroy")
_ALSO_CALLED = {"died": "die", "remove": "destroy"}  # by Podman
_PING_S = 5
_SUBSCRIBES_S = 25.0
_REMOVED = 2  # the kind of a change, in the engine's API


def connect(patience_s: int = 600) -> docker.DockerClient:
    """A client of the engine that answers at `$DOCKER_HOST` or at the usual sockets; raises `MachineError`.

    patience_s: how long a request may take; loading a large image takes minutes on a slow disk
    """
    address = os.environ.get("DOCKER_HOST") or _socket()
    try:
        _knock(address)
        known = _versions.get(_engine_at(address), {})
        client = docker.DockerClient(base_url=address, timeout=_PING_S, version=known.get("ApiVersion", "auto"))
        client.api.timeout = patience_s
    except (DockerException, RequestException, OSError) as exc:
        raise MachineError(
            "no Docker engine answers",
            why=f"{address}: {_reason(exc)}",
            hint="start it (`systemctl start docker`), or use `--runtime process`",
        ) from exc
    return client


#: What engines that were asked say of themselves: a command connects to one several times.
_versions: dict[str, dict[str, Any]] = {}


def _version(client: docker.DockerClient) -> dict[str, Any]:
    """Name, version and API version of an engine, as it tells them."""
    engine = _engine_at(os.environ.get("DOCKER_HOST") or _socket())
    if engine not in _versions:
        _versions[engine] = client.version()
    return _versions[engine]


def _engine_at(address: str) -> str:
    """An engine by its address; one that was started anew, perhaps in another version, has made its socket anew."""
    if not address.startswith("unix://"):
        return address
    try:
        made = Path(address.removeprefix("unix://")).stat()
    except OSError:
        return address
    return f"{address} {made.st_ino} {made.st_ctime_ns}"


@dataclass(frozen=True, slots=True)
class Kind:
    """What answers to the requests: Docker or Podman, started by root or by a user for himself."""

    podman: bool = False
    rootless: bool = False


def kind_of(client: docker.DockerClient) -> Kind:
    """What a client talks to."""
    with translated("the engine cannot be asked what it is"):
        names = [str(each.get("Name", "")) for each in _version(client).get("Components") or ()]
        info = client.info()
    rootless = bool(info.get("Rootless")) or "name=rootless" in (info.get("SecurityOptions") or ())
    return Kind(podman=any(name.startswith("Podman") for name in names), rootless=rootless)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise the SDK's errors as `MachineError`, saying what we were doing when they came."""
    try:
        yield
    except ImageNotFound as exc:
        raise MachineError(
            f"{doing}: the image is not on this machine", why=_reason(exc), hint="`run-local build` makes it again"
        ) from exc
    except (NOT_CONNECTED, Timeout) as exc:
        raise _lost(doing, _reason(exc)) from exc
    except (DockerException, RequestException) as exc:
        raise MachineError(f"{doing}: the Docker engine did not do it", why=_reason(exc)) from exc


def _lost(doing: str, why: str) -> MachineError:
    what, hint = f"{doing}: the Docker engine does not answer any more", "is it still running?"
    return MachineError(what, why, hint, {"outcome": "lost_engine"})


def again(ask: Callable[[], T]) -> T:
    """What the engine answers; asked once more where it had a fault of its own. For what may be asked twice only."""
    try:
        return ask()
    except APIError as exc:
        if not exc.is_server_error():
            raise
        try:
            return ask()
        except APIError:  # the first tells more: the second may only say that there is nothing any more
            raise exc from None


def describe_engine(client: docker.DockerClient) -> str:
    """What answers, in one line for people."""
    with translated("the engine cannot be asked what it is"):
        version, info = client.version(), client.info()
    name = (version.get("Components") or [{}])[0].get("Name", "Engine")
    groups = info.get("CgroupVersion", "1")
    return f"{name} {version['Version']} (API {version['ApiVersion']}), {info['Driver']}, control groups v{groups}"


def engine_version(client: docker.DockerClient) -> str:
    """What answers, by name and version."""
    with translated("the engine cannot be asked what it is"):
        version = _version(client)
    return f"{(version.get('Components') or [{}])[0].get('Name', 'Engine')} {version['Version']}"


def load(client: docker.DockerClient, archive: Iterator[bytes]) -> None:
    """Load an image from the chunks of an archive."""
    with translated("an image cannot be loaded"):
        for answer in client.api.load_image(archive):  # type: ignore[no-untyped-call]
            if "error" in answer:
                raise MachineError("an image cannot be loaded", why=str(answer["error"]))


def has_image(client: docker.DockerClient, reference: str) -> bool:
    """Whether the engine has an image of this name."""
    with translated(f"`{reference}` cannot be looked at"):
        try:
            client.images.get(reference)
        except ImageNotFound:
            return False
    return True


def save(client: docker.DockerClient, reference: str, target: Path) -> None:
    """Save an image to a file, as an archive."""
    with translated(f"`{reference}` cannot be saved"), target.open("wb") as file:
        for chunk in client.api.get_image(reference):
            file.write(chunk)


def output_of(client: docker.DockerClient, image: str, command: list[str]) -> str:
    """What a command prints in a container of an image, without network; both streams."""
    with container(client, image, command, network="none") as made:
        return made.wait()


class Container:
    """A container that was started for one command; removed at the end of the `with`."""

    def __init__(self, client: docker.DockerClient, id_: str) -> None:
        self._api, self._id = client.api, id_

    def wait(self) -> str:
        """Wait for its end; what it printed on both streams."""
        self._api.wait(self._id)
        return bytes(self._api.logs(self._id)).decode(errors="replace")

    def changes(self) -> dict[str, bool]:
        """Paths that differ from its image, without the first `/` → whether they are still there."""
        return {each["Path"].lstrip("/"): each["Kind"] != _REMOVED for each in self._api.diff(self._id) or []}

    def export(self, file: IO[bytes]) -> None:
        """Write its whole file system as a tar archive."""
        for chunk in self._api.export(self._id):
            file.write(chunk)


@contextlib.contextmanager
def container(client: docker.DockerClient, image: str, command: list[str], *, network: str) -> Iterator[Container]:
    """A container of an image that runs a command, and is gone afterwards. network: `none` or `host`."""
    with translated(f"`{image}` cannot be started"):
        made = client.api.create_container(
            image,
            command,
            entrypoint=[],
            labels={LABEL: "check"},
            host_config=client.api.create_host_config(network_mode=network),
        )["Id"]
        try:
            client.api.start(made)
            yield Container(client, made)
        finally:
            client.api.remove_container(made, force=True, v=True)


def bind(source: Path, target: str, *, writable: bool = False) -> Mount:
    """A folder of this machine in a container; read-only unless said otherwise, without what is mounted below it."""
    mount = Mount(target, str(source), "bind", read_only=not writable, propagation="rprivate")
    if not writable:  # before engine 25 a mount below a read-only mount stayed writable
        mount["BindOptions"]["NonRecursive"] = True
    return mount


class Watch:
    """Tells of the end and the removal of containers with a label, on the thread of a loop.

    notice(container, event, detail): event is `oom`, `kill` (detail: which signal somebody had the engine send), `die`
    (the exit code) or `destroy`; when the engine itself is gone, container is empty
    """

    def __init__(
        self, api: Any, label: str, notice: Callable[[str, str, str], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._loop = loop
        self._notice = notice
        self._asked: Future[Any] = Future()
        wanted = {"type": "container", "label": label, "event": [*_EVENTS, *_ALSO_CALLED]}
        threading.Thread(target=self._listen, args=(api, wanted), name="docker events", daemon=True).start()
        doing = "the events of the engine cannot be read"
        with translated(doing):
            try:
                self._stream = self._asked.result(_SUBSCRIBES_S)
            except FutureTimeout:  # a stream of events has no time-out of its own
                raise _lost(doing, f"no answer within {_SUBSCRIBES_S:g} s") from None

    def close(self) -> None:
        """Stop to listen."""
        self._notice = lambda *_: None
        with contextlib.suppress(Exception):  # the stream may have ended by itself
            self._stream.close()

    def _listen(self, api: Any, wanted: dict[str, Any]) -> None:
        try:
            stream = again(lambda: _subscribe(api, wanted))
        except Exception as exc:  # noqa: BLE001  it is told in the thread that asked
            self._asked.set_exception(exc)
            return
        self._asked.set_result(stream)
        with contextlib.suppress(Exception):  # whatever ends the stream, the engine is not heard any more
            for event in stream:
                told = event["Actor"]["Attributes"]
                detail = told.get("signal") or told.get("exitCode") or ""
                action = _ALSO_CALLED.get(event["Action"], event["Action"])
                self._loop.call_soon_threadsafe(self._tell, event["id"], action, detail)
        with contextlib.suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(self._tell, "", "gone", "")

    def _tell(self, container: str, event: str, detail: str) -> None:
        self._notice(container, event, detail)


def _subscribe(api: Any, wanted: dict[str, Any]) -> Any:
    stream = api.events(filters=wanted, decode=True)
    api._raise_for_status(stream._response)  # which the SDK forgets here: a refusal would look like an event
    return stream


def _knock(address: str) -> None:
    """Connect to a local socket once ourselves: the SDK leaves its own open where nobody answers."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.connect(address.removeprefix("unix://"))


def _socket() -> str:
    own = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "docker.sock"
    usual = Path("/var/run/docker.sock")
    return f"unix://{usual if usual.exists() or not own.exists() else own}"


def _reason(exc: BaseException) -> str:
    """The engine's own words."""
    explanation = getattr(exc, "explanation", None)
    lines = str(explanation or exc).strip().splitlines() or [type(exc).__name__]
    return lines[-1][:500]
