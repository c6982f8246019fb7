"""What a user wrote about an environment: `environment.yml` as conda users know it, and one key of ours.

    name: alphafold        # what conda calls it, and `prefix:`, where: both mean nothing here
    platforms: [linux-64]  # has to be among them
    channels: [conda-forge]
    dependencies:
      - python >=3.10,<3.13
      - pip
      - pip:
          - numpy==2.2.6
    variables: {OMP_SCHEDULE: static}
    run-local:
      cuda: false          # a CPU build is enough; default: whatever the channels and indexes prefer
      base: debian:12      # the image below it; default: the distribution of this machine
      apt: [hmmer]         # packages of that distribution, for Docker
      env: {A: b}          # more variables
      platform: linux-64   # the only one so far

All mistakes of a file are reported at once, each with the line it stands on. A specification may stand in Python, too
(`executor.CondaSpec`); it is read the same way, and its line is that of the declaration.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement

from executor.errors import SpecError
from executor.manifest import Manifest

_KEYS = frozenset({"name", "channels", "dependencies", "variables", "prefix", "platforms", "run-local"})
_OWN_KEYS = frozenset({"base", "cuda", "env", "apt", "platform"})
_PLATFORMS = ("linux-64", "linux/amd64")
_FILES = ("envs/{}/environment.yml", "envs/{}/environment.yaml", "envs/{}.yml")
_DEBIAN_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_CONDA_NAME = re.compile(r"(\S+::)?[A-Za-z0-9_][A-Za-z0-9_.-]*($|[\s=<>!~\[])")
_INSTEAD_OF_OPTIONS = {
    "-e": "is an editable install: the project's source is in every environment by itself",
    "--editable": "is an editable install: the project's source is in every environment by itself",
    "-r": "is a file of requirements: list them here, so that they are locked",
    "--requirement": "is a file of requirements: list them here, so that they are locked",
    "-": "is an option of pip: indexes and find-links are taken from pip's own configuration",
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One environment's specification, or the union of several.

    sources:  which environment asked for what: name → its requirements, as written
    channels: conda channels, best first
    conda, pip: requirements, as written
    variables: environment variables of the image or prefix
    cuda:     False takes CPU builds where they can be had; None leaves it to the indexes
    apt:      packages of the base's distribution
    lines:    the same: name → requirement → where it stands, such as `envs/x/environment.yml:7`
    lock:     the lock to be taken, where it is not the one that is found for it: that of an earlier run
    """

    name: str
    path: Path | None
    sources: Mapping[str, tuple[str, ...]]
    channels: tuple[str, ...]
    conda: tuple[str, ...]
    pip: tuple[str, ...]
    base: str | None = None
    cuda: bool | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    apt: tuple[str, ...] = ()
    lines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lock: Path | None = None

    @property
    def digest(self) -> str:
        """Changes when anything does that a lock depends on; comments, order of keys and the name do not matter."""
        content = [self.channels, self.conda, self.pip, self.cuda]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def render(self) -> str:
        """The specification as an environment.yml that conda-lock reads."""
        dependencies: list[Any] = [*self.conda, *([{"pip": list(self.pip)}] if self.pip else [])]
        return yaml.safe_dump({"name": self.name, "channels": list(self.channels), "dependencies": dependencies})


def find_spec(manifest: Manifest, environment: str) -> Spec:
    """The specification of a declared environment, united with those that it extends."""
    root = Path(manifest.root)
    found: list[Spec] = []
    for name in manifest.bases(environment):
        entry = manifest.environments[name]
        path = root / entry.image if entry.image else _default_path(root, name)
        declared = f"{entry.file}:{entry.line}"
        if entry.spec is not None:
            found.append(read_inline(entry.spec, name, declared))
        elif path and path.is_file():
            found.append(read_spec(path, name, root))
        elif entry.image or not entry.extends:
            raise _no_spec(root, name, entry.image, declared)
    return unite(environment, found)


def spec_names(root: Path) -> dict[str, Path]:
    """Every environment that has a specification in the usual place, by name."""
    names = {path.parent.name for path in root.glob("envs/*/environment.y*ml")} | {
        path.stem for path in root.glob("envs/*.yml")
    }
    return {name: path for name in sorted(names) if (path := _default_path(root, name))}


def unite(name: str, specs: list[Spec]) -> Spec:
    """One specification for the packages of all; requirements that contradict each other are for the solver to find."""
    if len(specs) == 1 and specs[0].name == name:
        return specs[0]
    last = specs[-1]
    return Spec(
        name=name,
        path=last.path if last.name == name else None,
        sources={each.name: (*each.conda, *each.pip) for each in specs},
        channels=_merged(each.channels for each in reversed(specs)),
        conda=_merged(each.conda for each in specs),
        pip=_merged(each.pip for each in specs),
        base=next((each.base for each in reversed(specs) if each.base), None),
        cuda=next((each.cuda for each in reversed(specs) if each.cuda is not None), None),
        variables={key: value for each in specs for key, value in each.variables.items()},
        apt=_merged(each.apt for each in specs),
        lines={name: lines for each in specs for name, lines in each.lines.items()},
    )


def read_spec(path: Path, name: str, root: Path | None = None) -> Spec:
    """The specification in a file; raises `SpecError` with every mistake and the line of each.

    root: the project, where it is known; places are told from there
    """
    short = _shown(path, root)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"{short}:{mark.line + 1}:{mark.column + 1}" if mark else str(short)
        raise SpecError(f"`{path.name}` of environment `{name}` is not YAML", why=f"{where}: {exc.problem}") from exc
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise SpecError(f"the specification of environment `{name}` cannot be read", why=f"{short}: {exc}") from exc
    return _read(node, name, path, lambda found: f"{short}:{found.start_mark.line + 1 if found else 1}")


def read_inline(spec: Mapping[str, Any], name: str, declared: str) -> Spec:
    """The specification that a `CondaSpec` gave as plain data. declared: where, such as `flow.py:12`."""
    pip = [{"pip": spec["pip"]}] if spec["pip"] else []
    own = {key: spec[key] for key in ("base", "apt", "cuda", "platform") if spec[key]} | (
        {"cuda": False} if spec["cuda"] is False else {}
    )
    document = {
        "channels": spec["channels"],
        "dependencies": [*spec["dependencies"], *pip],
        "variables": spec["variables"],
        "run-local": own,
    }
    return _read(yaml.compose(yaml.safe_dump(document), Loader=yaml.SafeLoader), name, None, lambda _: declared)


def _read(node: yaml.Node | None, name: str, path: Path | None, place: Callable[[yaml.Node | None], str]) -> Spec:
    reader = _Reader(path, place)
    spec = reader.read(node, name)
    if reader.mistakes:
        raise SpecError(
            f"the specification of environment `{name}` is wrong",
            why="\n".join(reader.mistakes),
            hint="an environment.yml has channels, dependencies (with a `pip:` list), and `run-local:` for what is ours",
        )
    return spec


class _Reader:
    """Reads the nodes of one file, and notes each mistake with its line."""

    def __init__(self, path: Path | None, place: Callable[[yaml.Node | None], str]) -> None:
        self._path, self._place = path, place
        self._lines: dict[str, str] = {}
        self.mistakes: list[str] = []

    def read(self, node: yaml.Node | None, name: str) -> Spec:
        keys = self._mapping(node, _KEYS, "environment.yml")
        own = self._mapping(keys.get("run-local"), _OWN_KEYS, "`run-local:`")
        conda, pip = self._dependencies(keys.get("dependencies"))
        self._check_platform(own.get("platform"))
        self._check_platforms(keys.get("platforms"))
        if node is not None and not any(_package_name(each) == "python" for each in conda):
            self._wrong(keys.get("dependencies") or node, "no `python` among the dependencies; tasks are Python")
        if pip and not any(_package_name(each) == "pip" for each in conda):
            conda.append("pip")
        return Spec(
            name=name,
            path=self._path,
            sources={name: (*conda, *pip)},
            channels=tuple(self._texts(keys.get("channels"), "channels")) or ("conda-forge",),
            conda=tuple(conda),
            pip=tuple(pip),
            base=self._scalar(own.get("base"), str, "base"),
            cuda=self._scalar(own.get("cuda"), bool, "cuda"),
            apt=self._apt(own.get("apt")),
            variables={**self._variables(keys.get("variables")), **self._variables(own.get("env"))},
            lines={name: self._lines},
        )

    def _wrong(self, node: yaml.Node | None, text: str) -> None:
        self.mistakes.append(f"{self._place(node)}: {text}")

    def _mapping(self, node: yaml.Node | None, allowed: frozenset[str], what: str) -> dict[str, yaml.Node]:
        if node is None:
            if what == "environment.yml":
                self._wrong(None, "the file is empty")
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, f"{what} must be a mapping of keys")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._wrong(key, "a key must be a text")
            elif key.value in found:
                self._wrong(key, f"`{key.value}` is there a second time in {what}")
            elif key.value not in allowed:
                near = difflib.get_close_matches(key.value, allowed, 1)
                advice = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(allowed))}"
                self._wrong(key, f"unknown key `{key.value}` in {what}; {advice}")
            else:
                found[key.value] = value
        return found

    def _dependencies(self, node: yaml.Node | None) -> tuple[list[str], list[str]]:
        conda: list[str] = []
        pip: list[str] = []
        if not isinstance(node, yaml.SequenceNode):
            self._wrong(node, "`dependencies:` must be a list")
            return conda, pip
        for item in node.value:
            if isinstance(item, yaml.ScalarNode) and item.value:
                self._note(item, conda, _conda_problem(item.value))
            elif isinstance(item, yaml.MappingNode) and [key.value for key, _ in item.value] == ["pip"]:
                pip += self._requirements(item.value[0][1])
            else:
                self._wrong(item, "a dependency is a text like `numpy >=2`, or one `pip:` list")
        return conda, pip

    def _requirements(self, node: yaml.Node) -> list[str]:
        found: list[str] = []
        for text, item in zip(self._texts(node, "pip"), node.value, strict=False):
            self._note(item, found, _pip_problem(text))
        return found

    def _note(self, item: yaml.ScalarNode, found: list[str], problem: str) -> None:
        """A requirement, or what is wrong with it."""
        text = str(item.value)
        if problem:
            self._wrong(item, f"`{text}` {problem}")
        else:
            found.append(text)
            self._lines.setdefault(text, self._place(item))

    def _apt(self, node: yaml.Node | None) -> tuple[str, ...]:
        names = self._texts(node, "apt")
        for name, item in zip(names, node.value if node else (), strict=False):
            if not _DEBIAN_NAME.fullmatch(name):
                self._wrong(item, f"`{name}` cannot be the name of a Debian package")
        return tuple(names)

    def _check_platform(self, node: yaml.Node | None) -> None:
        platform = self._scalar(node, str, "platform")
        if platform and platform not in _PLATFORMS:
            self._wrong(node, f"`{platform}` cannot be built and run here; the one platform so far is `linux-64`")

    def _check_platforms(self, node: yaml.Node | None) -> None:
        """What other tools take for a list of the platforms to lock for."""
        mistakes = len(self.mistakes)
        found = self._texts(node, "platforms")
        if node and len(self.mistakes) == mistakes and not set(found) & set(_PLATFORMS):
            self._wrong(node, "`platforms:` is without `linux-64`, which is the one platform so far")

    def _texts(self, node: yaml.Node | None, what: str) -> list[str]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode) or not all(isinstance(each, yaml.ScalarNode) for each in node.value):
            self._wrong(node, f"`{what}:` must be a list of texts")
            return []
        return [str(each.value) for each in node.value]

    def _variables(self, node: yaml.Node | None) -> dict[str, str]:
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, "variables are a mapping of names to texts")
            return {}
        found: dict[str, str] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.value or "=" in key.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                self._wrong(key, f"`{name}` cannot name a variable")
            elif not isinstance(value, yaml.ScalarNode):
                self._wrong(value, f"variable `{key.value}` must be a text")
            else:
                found[key.value] = value.value
        return found

    def _scalar(self, node: yaml.Node | None, kind: type, what: str) -> Any:
        if node is None:
            return None
        try:
            value = yaml.safe_load(yaml.serialize(node))
        except (yaml.YAMLError, ValueError):  # a tag that means nothing to us, or a date that is none
            value = None
        if not isinstance(value, kind):
            self._wrong(node, f"`{what}:` must be {'true or false' if kind is bool else 'a text'}")
            return None
        return value


def _conda_problem(text: str) -> str:
    """What is wrong with a conda requirement, as far as that can be seen without a solver."""
    if text.startswith("-"):
        return "is an option, and no package"
    if re.search(r"[=<>!~]\s*$", text):
        return "ends with a comparison to nothing"
    if re.search(r"[=<>!~]\s+[=<>!~]", text):
        return "compares twice: write it like `numpy >=2,<3`"
    return "" if _CONDA_NAME.match(text) else "names no package: write it like `numpy >=2,<3`"


def _pip_problem(text: str) -> str:
    """What is wrong with a requirement of the `pip:` list."""
    for option, advice in _INSTEAD_OF_OPTIONS.items():
        if text.startswith(option):
            return advice
    try:
        Requirement(text.partition(" @ ")[0])  # where it is, the installer checks
    except InvalidRequirement:
        return "names no package: write `name ==version`, or `name @ file:///…/it.whl`"
    return ""


def _package_name(requirement: str) -> str:
    """The package that a conda requirement names, without its channel, version and build."""
    text = requirement.rpartition("::")[2].strip()
    for end, character in enumerate(text):
        if character in " =<>!~[;":
            return text[:end].lower()
    return text.lower()


def _merged(lists: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for each in lists for item in each))


def _shown(path: Path, root: Path | None) -> Path:
    """A file as messages name it: from the project's root, or from the `envs` that it lies in."""
    if root and path.is_relative_to(root):
        return path.relative_to(root)
    if "envs" in path.parts[-3:-1]:
        return Path(*path.parts[-3 + path.parts[-3:-1].index("envs") :])
    return Path(path.name)


def _default_path(root: Path, name: str) -> Path | None:
    return next((path for pattern in _FILES if (path := root / pattern.format(name)).is_file()), None)


def _no_spec(root: Path, name: str, image: str | None, declared: str) -> SpecError:
    looked = [image] if image else [pattern.format(name) for pattern in _FILES]
    near = difflib.get_close_matches(name, spec_names(root), 3)
    there = f"did you mean {' or '.join(f'`{each}`' for each in near)}? " if near else ""
    return SpecError(
        f"environment `{name}` has no specification",
        why=f"it is declared at {declared}, and in `{root}` there is no {' and no '.join(looked)}",
        hint=f"{there}write `{looked[0]}` with the packages that its tasks import",
    )
