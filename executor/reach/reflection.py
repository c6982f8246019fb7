"""Ways to get at code without naming it, and so how much of a project can be reached by each.

source   the text of the source can be read, comments and line numbers included: everything counts, byte by byte
modules  any module can be imported or looked into: all of them count
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

Extent = Literal["source", "modules"]

_SOURCE = (
    "ast.get_source_segment", "doctest.", "inspect.currentframe", "inspect.findsource", "inspect.getabsfile",
    "inspect.getblock", "inspect.getcomments", "inspect.getfile", "inspect.getframeinfo", "inspect.getinnerframes",
    "inspect.getouterframes", "inspect.getsource", "inspect.getsourcefile", "inspect.getsourcelines",
    "inspect.stack", "inspect.trace", "linecache.", "sys._current_frames", "sys._getframe", "tokenize.", "trace.",
    "traceback.StackSummary", "traceback.TracebackException", "traceback.extract_stack", "traceback.extract_tb",
    "traceback.format_exc", "traceback.format_exception", "traceback.format_list", "traceback.format_stack",
    "traceback.format_tb", "traceback.walk_stack", "traceback.walk_tb",
)  # fmt: skip
_MODULES = (
    "builtins.__import__", "builtins.compile", "builtins.eval", "builtins.exec", "cloudpickle.load",
    "cloudpickle.loads", "code.", "codeop.", "dill.load", "dill.loads", "gc.", "hydra.utils.get_class",
    "hydra.utils.instantiate", "imp.", "importlib.", "importlib.abc.", "importlib.machinery.", "importlib.util.",
    "inspect.getmodule", "joblib.load", "logging.config.dictConfig", "logging.config.fileConfig", "marshal.load",
    "marshal.loads", "numpy.load", "pandas.read_pickle", "pickle.Unpickler", "pickle.load", "pickle.loads",
    "pkgutil.", "pydoc.", "runpy.", "shelve.open", "site.", "sys.meta_path", "sys.modules", "sys.path",
    "sys.path_hooks", "sys.path_importer_cache", "sys.setprofile", "sys.settrace", "timeit.repeat", "timeit.timeit",
    "torch.load", "types.CodeType", "types.FunctionType", "yaml.load", "yaml.unsafe_load", "zipimport.",
)  # fmt: skip
#: Modules of which it is not known what is taken from them, where they are handed on as a whole.
_OPAQUE = frozenset(
    {"builtins", "code", "gc", "importlib", "inspect", "pickle", "pkgutil", "runpy", "sys", "traceback"}
)
#: Attributes of anything that lead there.
_ATTRIBUTES: dict[str, Extent] = {
    **dict.fromkeys(
        ("__globals__", "__subclasses__", "__builtins__", "__loader__", "f_globals", "f_builtins"), "modules"
    ),
    **dict.fromkeys(("__code__", "f_back", "f_code", "f_lineno", "tb_frame", "tb_lineno", "co_filename"), "source"),
    **dict.fromkeys(("lineno", "findCaller"), "source"),
    **dict.fromkeys(("co_firstlineno", "co_lines", "co_positions", "gi_frame", "cr_frame", "ag_frame"), "source"),
}
#: Whoever uses these looks at docstrings or at the annotations of functions.
_LOOKING = ("inspect.getdoc", "inspect.signature", "inspect.get_annotations", "inspect.getfullargspec", "builtins.help")
_LOOKING_AT = frozenset({"__annotations__", "__doc__", "__signature__", "__text_signature__", "__annotate__"})
#: What loads a module by its name.
_BY_NAME = frozenset({"importlib.import_module", "builtins.__import__", "importlib.util.find_spec"})


def extent_of(name: str, settings: Collection[str] = ()) -> Extent | None:
    """How much can be reached by something from outside, given by its full name; None: nothing but itself.

    settings: as in `executor.reach.references.Chain`
    """
    if (name == "torch.load" and "weights_only" in settings) or (
        name == "numpy.load" and not {"allow_pickle", "allow_pickle?", "?"} & set(settings)
    ):
        return None
    for known, extent in ((_SOURCE, "source"), (_MODULES, "modules")):
        if any(_is_in(name, each) for each in known):
            return "source" if extent == "source" else "modules"
    return "modules" if name in _OPAQUE else None


def telling(words: Iterable[str]) -> list[str]:
    """Those of these words, attributes or texts, that are ways to look at code."""
    return sorted(each for each in words if each in _ATTRIBUTES or each in _LOOKING_AT)


def extent_of_attribute(name: str) -> Extent | None:
    """The same for an attribute of anything."""
    return _ATTRIBUTES.get(name)


def loads_by_name(name: str) -> bool:
    """Whether this loads the module that its first argument names."""
    return name in _BY_NAME


def looks_at_definitions(name: str) -> bool:
    """Whether this shows docstrings, or the annotations of functions."""
    return name in _LOOKING or name.endswith("get_type_hints") or name in _LOOKING_AT


def _is_in(name: str, known: str) -> bool:
    """Whether a name is a known one, or below it; one that ends with a dot has whatever is directly below it."""
    if known.endswith("."):
        return name == known[:-1] or name.rpartition(".")[0] == known[:-1]
    return name == known or name.startswith(known + ".")
