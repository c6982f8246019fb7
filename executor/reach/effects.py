"""Whether a statement at the top level of a module does more, when the module is imported, than bind its names.

What is not known to be harmless counts as an effect: whoever imports the module reaches it.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable

from executor.imports import EVERYWHERE
from executor.reach.modules import FUNCTIONS, Unit, bound_in
from executor.reach.names import Names
from executor.reach.normal import Definition
from executor.worker.source import is_for_type_checkers

#: Those of `builtins` that call nothing of their arguments' but what they are made for.
_BUILTINS = (
    "abs", "bin", "bool", "bytearray", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "filter",
    "float", "frozenset", "hex", "int", "len", "list", "map", "max", "min", "object", "oct", "ord", "pow",
    "range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
#: Full names, and beginnings of them, of what can be called without any effect but its value.
_HARMLESS = (
    *(f"builtins.{name}" for name in _BUILTINS),
    "collections.ChainMap", "collections.Counter", "collections.OrderedDict",
    "collections.deque", "collections.namedtuple", "contextlib.", "contextvars.ContextVar", "copy.", "dataclasses.",
    "datetime.", "datetime.date.", "datetime.datetime.", "decimal.", "enum.",
    "executor.Backoff", "executor.Cache", "executor.CondaSpec",
    "executor.Image", "executor.RetryStrategy", "executor.ReusePolicy",
    "executor.Mount", "executor.Resources", "executor.Reuse", "executor.Secret", "executor.TaskEnvironment",
    "executor.reference_task", "fractions.", "functools.", "itertools.", "json.dumps", "json.loads",
    "logging.getLogger", "math.", "numpy.arange", "numpy.array", "numpy.asarray", "numpy.exp", "numpy.eye",
    "numpy.float32", "numpy.float64", "numpy.int32", "numpy.int64", "numpy.linspace", "numpy.log", "numpy.ones",
    "numpy.sqrt", "numpy.zeros", "operator.", "os.cpu_count", "os.environ.get", "os.fspath", "os.getenv",
    "os.path.", "pathlib.", "pathlib.Path.cwd", "pathlib.Path.home", "re.compile", "re.escape", "statistics.",
    "string.", "struct.", "textwrap.", "threading.Lock", "threading.RLock", "threading.local", "torch.device",
    "torch.tensor", "types.MappingProxyType", "types.SimpleNamespace", "typing.", "typing_extensions.", "uuid.UUID",
)  # fmt: skip
#: Decorators and bases with no effect either, and which look at no docstring and no annotation.
_DECORATORS = (
    "abc.", "builtins.classmethod", "builtins.property", "builtins.staticmethod", "contextlib.", "dataclasses.",
    "enum.", "functools.cache", "functools.cached_property", "functools.lru_cache", "functools.partial",
    "functools.total_ordering", "functools.wraps", "numba.jit", "numba.njit", "torch.inference_mode",
    "torch.no_grad", "typing.", "typing_extensions.",
)  # fmt: skip
_BASES = ("torch.nn.Module", "torch.utils.data.Dataset", "torch.autograd.Function")
_MODELS = ("pydantic.BaseModel",)
_METHODS = frozenset({
    "absolute", "as_posix", "copy", "count", "decode", "difference", "encode", "endswith", "exists", "expanduser",
    "format", "get", "index", "intersection", "is_dir", "is_file", "items", "join", "joinpath", "keys", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "resolve", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "title", "translate", "union", "upper", "values", "with_name",
    "with_stem", "with_suffix", "zfill",
})  # fmt: skip
#: Called when a class is made or derived from, or an object of it is.
_HOOKS = frozenset(
    {"__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__class_getitem__", "__prepare__"}
)
_VALUES = (
    *(ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.JoinedStr, ast.FormattedValue, ast.Starred, ast.IfExp),
    *(
        ast.BoolOp,
        ast.BinOp,
        ast.UnaryOp,
        ast.Compare,
        ast.Subscript,
        ast.Slice,
        ast.ListComp,
        ast.SetComp,
        ast.DictComp,
    ),
    *(ast.GeneratorExp, ast.comprehension, ast.keyword),
)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
#: Values of these can be gone through once: whoever reads one changes it for the next.
_ITERATORS = (
    "builtins.map",
    "builtins.filter",
    "builtins.zip",
    "builtins.reversed",
    "builtins.enumerate",
    "itertools.",
)
#: Those of the harmless that call what they are given.
_CALLERS = (
    "builtins.map",
    "builtins.filter",
    "builtins.sorted",
    "builtins.min",
    "builtins.max",
    "functools.",
    "itertools.",
)
_OF_MODULES = frozenset({"__file__", "__name__", "__doc__", "__package__", "__path__"})
_MOST_HOPS = 20
_NO_NAMES: Collection[str] = frozenset()


class Effects:
    """What importing the modules of a project does."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._known: dict[Unit, bool] = {}
        self._calls: dict[Unit, bool] = {}

    def has_effect(self, unit: Unit) -> bool:
        """Whether a unit does more than to bind names; asked while it is being found out, it does."""
        if unit not in self._known:
            self._known[unit] = True
            self._known[unit] = not self._is_harmless(unit.node, unit)
        return self._known[unit]

    def is_package_import(self, unit: Unit) -> bool:
        """Whether it is the import of something that is neither Python's nor the project's."""
        return bool(unit.alias) and self._imports_package(unit)

    def environment_of(self, node: ast.AST, file: str) -> ast.Call | None:
        """The `TaskEnvironment(…)` whose tasks a decorator declares; None where it is none that can be seen."""
        called = node.func if isinstance(node, ast.Call) else node
        if not isinstance(called, ast.Attribute) or called.attr != "task":
            return None
        unit = self._names.defined(called.value, file)
        value = getattr(unit.node, "value", None) if unit else None
        if not unit or not isinstance(value, ast.Call):
            return None
        return value if (self._names.outside(value.func, unit.file) or "").endswith(".TaskEnvironment") else None

    def shows(self, node: Definition, file: str) -> bool:
        """Whether somebody else sees the docstring and annotations of a definition: a decorator, or a base class."""
        if not all(self._is_plain_decorator(each, file) for each in node.decorator_list):
            return True
        if isinstance(node, ast.ClassDef):
            return not all(self._is_known_base(each, file, models=False) for each in node.bases)
        return not self._has_plain_annotations(node, file)

    # -- statements --------------------------------------------------------------------------------------------------------

    def _is_harmless(self, node: ast.AST, unit: Unit, own: Collection[str] = _NO_NAMES) -> bool:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return not self._imports_package(unit)
        if isinstance(node, FUNCTIONS):
            return self._is_harmless_function(node, unit.file, own)
        if isinstance(node, ast.ClassDef):
            return self._is_harmless_class(node, unit)
        if isinstance(node, _ASSIGNMENTS):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            plain = all(self._is_names(each) for each in targets)
            if isinstance(node, ast.AugAssign) and getattr(node.target, "id", "") != "__all__":
                return False  # it may change what other names stand for as well
            plain = plain and (not isinstance(node, ast.AnnAssign) or self._is_plain(node.annotation, unit.file, own))
            return plain and (node.value is None or self._is_plain(node.value, unit.file, own))
        if isinstance(node, ast.Delete):
            return all(self._is_names(each) for each in node.targets)
        if isinstance(node, (ast.If, ast.Try)):
            return self._is_harmless_block(node, unit, own)
        return isinstance(node, (ast.Pass, ast.Global)) or self._is_constant(node) or type(node).__name__ == "TypeAlias"

    def _is_harmless_block(self, node: ast.If | ast.Try, unit: Unit, own: Collection[str]) -> bool:
        if isinstance(node, ast.If):
            body = [] if is_for_type_checkers(node) else node.body
            return self._is_plain(node.test, unit.file, own) and self._are_harmless([*body, *node.orelse], unit, own)
        handled = [each for handler in node.handlers for each in handler.body]
        return self._are_harmless([*node.body, *handled, *node.orelse, *node.finalbody], unit, own)

    def _are_harmless(self, nodes: Iterable[ast.AST], unit: Unit, own: Collection[str]) -> bool:
        return all(self._is_harmless(each, unit, own) for each in nodes)

    def _imports_package(self, unit: Unit) -> bool:
        return any(
            self._names.locate(each) is None and each.module and each.module[0] not in EVERYWHERE
            for each in unit.aliases
        )

    def _is_constant(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

    def _is_names(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.Tuple, ast.List)):
            return all(self._is_names(each) for each in node.elts)
        return isinstance(node, ast.Name) or (isinstance(node, ast.Starred) and self._is_names(node.value))

    def _is_harmless_function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, file: str, own: Collection[str]
    ) -> bool:
        defaults = (*node.args.defaults, *filter(None, node.args.kw_defaults))
        plain = all(self._is_plain(each, file, own) for each in defaults) and self._has_plain_annotations(
            node, file, own
        )
        return plain and all(self._is_harmless_decorator(each, file) for each in node.decorator_list)

    def _has_plain_annotations(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, file: str, own: Collection[str] = _NO_NAMES
    ) -> bool:
        """Whether evaluating them, if Python does that at all, has no effect."""
        imported = self._names.module(file).bindings.get("annotations", ())
        if any(unit.alias and unit.alias.module == ("__future__",) for unit in imported):
            return True
        parameters = [each for each in ast.walk(node.args) if isinstance(each, ast.arg)]
        found = [*(each.annotation for each in parameters), node.returns]
        return all(each is None or not _calls(each) or self._is_plain(each, file, own) for each in found)

    def _is_harmless_decorator(self, node: ast.expr, file: str) -> bool:
        arguments = [*node.args, *node.keywords] if isinstance(node, ast.Call) else []
        if not all(self._is_plain(each, file) for each in arguments):
            return False
        if self._is_plain_decorator(node, file):
            return True
        unit = self._names.defined(node, file)
        return unit is not None and isinstance(unit.node, FUNCTIONS) and self._can_be_called(unit)

    def _is_plain_decorator(self, node: ast.expr, file: str) -> bool:
        called = node.func if isinstance(node, ast.Call) else node
        if isinstance(called, ast.Attribute) and called.attr in ("setter", "getter", "deleter"):
            return isinstance(called.value, ast.Name) and called.value.id not in self._names.module(file).bindings
        known = self._names.outside(called, file)
        return (known is not None and _is_one_of(known, _DECORATORS)) or self.environment_of(node, file) is not None

    # -- classes -----------------------------------------------------------------------------------------------------------

    def _is_harmless_class(self, node: ast.ClassDef, unit: Unit) -> bool:
        if not all(self._is_harmless_decorator(each, unit.file) for each in node.decorator_list):
            return False
        if not all(self._is_known_base(each, unit.file, models=True) for each in node.bases):
            return False
        plain = all(each.arg == "total" or self._is_abc(each.value, unit.file) for each in node.keywords)
        if "__class_getitem__" in _defined_in(node):
            return False  # it is called where the class is merely written with brackets
        if self._is_enum(node, unit.file) and any(each.startswith("_") for each in _defined_in(node)):
            return False  # such methods are called when the members are made
        return plain and self._are_harmless(node.body, unit, bound_in(node.body))

    def _is_enum(self, node: ast.ClassDef, file: str) -> bool:
        for base in node.bases:
            unit = self._names.defined(base, file)
            if (self._names.outside(base, file) or "").startswith("enum."):
                return True
            if (
                unit
                and isinstance(unit.node, ast.ClassDef)
                and unit.node is not node
                and self._is_enum(unit.node, unit.file)
            ):
                return True
        return False

    def _is_abc(self, node: ast.AST, file: str) -> bool:
        return self._names.outside(node, file) == "abc.ABCMeta"

    def _is_known_base(self, node: ast.expr, file: str, *, models: bool) -> bool:
        """Whether deriving from it does nothing."""
        base = node.value if isinstance(node, ast.Subscript) else node
        base = base.func if isinstance(base, ast.Call) else base
        known = self._names.outside(base, file)
        if known is not None:
            allowed = (*_BASES, *_MODELS) if models else _BASES
            return known in allowed or known.partition(".")[0] in EVERYWHERE - {"executor"}
        unit = self._names.defined(base, file)
        if unit is None or not isinstance(unit.node, ast.ClassDef):
            return False
        hooks = {"__init_subclass__", "__class_getitem__"} & _defined_in(unit.node)
        plain = not hooks and not [each for each in unit.node.keywords if not self._is_abc(each.value, unit.file)]
        return plain and all(self._is_known_base(each, unit.file, models=models) for each in unit.node.bases)

    # -- expressions -------------------------------------------------------------------------------------------------------

    def _is_plain(
        self, node: ast.AST, file: str, own: Collection[str] = _NO_NAMES, *, is_consumed: bool = False
    ) -> bool:
        """Whether evaluating an expression has no effect.

        own:         names of the function or class that it is in
        is_consumed: whether an iterator is used up at once, so that nobody else can go through it
        """
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._is_plain_name(node, file, own)
        if isinstance(node, ast.Lambda):
            return all(
                self._is_plain(each, file, own) for each in (*node.args.defaults, *filter(None, node.args.kw_defaults))
            )
        if isinstance(node, ast.Call):
            return self._is_plain_call(node, file, own, is_consumed=is_consumed)
        if isinstance(node, ast.GeneratorExp) and not is_consumed:
            return False
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            own = {*own, *bound_in([each.target for each in node.generators])}
        return isinstance(node, (*_VALUES, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)) and all(
            self._is_plain(each, file, own) for each in ast.iter_child_nodes(node)
        )

    def _is_plain_name(self, node: ast.Name | ast.Attribute, file: str, own: Collection[str]) -> bool:
        """Whether it stands for something from outside, or for what a unit without an effect has bound."""
        if isinstance(node, ast.Name) and (
            not isinstance(node.ctx, ast.Load) or node.id in own or node.id in _OF_MODULES
        ):
            return True
        if not _begins_with(node, own):
            if self._names.outside(node, file) is not None:
                return True
            unit = self._names.defined(node, file)
            if unit is not None:
                return not self.has_effect(unit)
        return isinstance(node, ast.Attribute) and self._is_plain(node.value, file, own)

    def _is_plain_call(self, node: ast.Call, file: str, own: Collection[str], *, is_consumed: bool) -> bool:
        arguments = [*node.args, *(each.value for each in node.keywords)]
        is_own = _begins_with(node.func, own)
        name = None if is_own else self._names.outside(node.func, file)
        if name is not None and _is_one_of(name, _HARMLESS):
            if _is_one_of(name, _ITERATORS) and not is_consumed:
                return False
            uses_up = name.startswith("builtins.")
            plain = all(self._is_plain(each, file, own, is_consumed=uses_up) for each in arguments)
            holds = name.endswith((".TaskEnvironment", ".partial"))
            calls = _is_one_of(name, _CALLERS)
            return plain and (holds or not any(self._could_call(each, file, own, calls=calls) for each in arguments))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            uses_up = node.func.attr == "join"
            plain = all(self._is_plain(each, file, own, is_consumed=uses_up) for each in arguments)
            return name is None and plain and self._is_plain(node.func.value, file, own)
        unit = None if is_own else self._names.defined(node.func, file)
        if unit is None or not self._can_be_called(unit):
            return False
        return all(self._is_plain(each, file, own) and not self._could_call(each, file, own) for each in arguments)

    def _could_call(
        self, node: ast.AST, file: str, own: Collection[str], hops: int = 0, *, calls: bool = False
    ) -> bool:
        """Whether what is given this value could have an effect by it; calls: it calls what it is given."""
        called = {id(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)}
        for each in ast.walk(node):
            if calls and isinstance(each, (ast.Name, ast.Attribute)) and id(each) not in called:
                name = self._names.outside(each, file)
                known = name is not None and (_is_one_of(name, _HARMLESS) or name.startswith("builtins.str."))
                if not known and (name is not None or isinstance(each, ast.Attribute)):
                    return True
            if isinstance(each, ast.Lambda):
                parameters = {one.arg for one in ast.walk(each.args) if isinstance(one, ast.arg)}
                if not self._is_plain(each.body, file, {*own, *parameters}):
                    return True
            unit = self._names.defined(each, file) if isinstance(each, (ast.Name, ast.Attribute)) else None
            if unit is None:
                continue
            value = getattr(unit.node, "value", None)
            if (
                not isinstance(value, ast.AST)
                or hops > _MOST_HOPS
                or self._could_call(value, unit.file, (), hops + 1, calls=calls)
            ):
                return True
        return False

    # -- calls of the project's functions ----------------------------------------------------------------------------------

    def _can_be_called(self, unit: Unit) -> bool:
        """Whether calling it at the top level has no effect but its value; asked while it is being found out, it has."""
        if unit not in self._calls:
            self._calls[unit] = False
            if isinstance(unit.node, FUNCTIONS):
                self._calls[unit] = self._is_simple(unit.node, unit.file)
            elif isinstance(unit.node, ast.ClassDef):
                self._calls[unit] = not self.has_effect(unit) and self._makes_plain_objects(unit.node, unit.file)
        return self._calls[unit]

    def _makes_plain_objects(self, node: ast.ClassDef, file: str) -> bool:
        bases = [self._names.defined(each, file) for each in node.bases]
        methods = [each for each in node.body if isinstance(each, FUNCTIONS)]
        if any(each.decorator_list or each.name in _METHODS or each.name.startswith("__") for each in methods):
            return False
        return (
            not node.keywords
            and not _HOOKS & _defined_in(node)
            and all(
                unit is not None
                and isinstance(unit.node, ast.ClassDef)
                and self._makes_plain_objects(unit.node, unit.file)
                for unit in bases
            )
        )

    def _is_simple(self, node: ast.FunctionDef | ast.AsyncFunctionDef, file: str) -> bool:
        """Whether a function only makes a value of what it is given."""
        own = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)} | bound_in(node.body)
        return not node.decorator_list and all(self._is_simple_statement(each, file, own) for each in node.body)

    def _is_simple_statement(self, node: ast.stmt, file: str, own: Collection[str]) -> bool:
        if isinstance(node, FUNCTIONS):
            return all(self._is_plain_decorator(each, file) for each in node.decorator_list) and all(
                self._is_plain(each, file, own) for each in (*node.args.defaults, *filter(None, node.args.kw_defaults))
            )
        if isinstance(node, ast.Assign):
            return all(map(self._is_names, node.targets)) and self._is_plain(node.value, file, own)
        if isinstance(node, ast.Return):
            return node.value is None or self._is_plain(node.value, file, own)
        return isinstance(node, ast.Pass) or self._is_constant(node)


def _is_one_of(name: str, known: Iterable[str]) -> bool:
    family = name.rpartition(".")[0] + "."
    return any(each in (name, family) for each in known)


def _calls(node: ast.AST) -> bool:
    """Whether an annotation is more than names, texts and unions of them."""
    return any(isinstance(each, (ast.Call, ast.NamedExpr, ast.Subscript)) for each in ast.walk(node))


def _begins_with(node: ast.AST, own: Collection[str]) -> bool:
    """Whether a name, or what attributes are taken from, is one of these."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in own


def _defined_in(node: ast.ClassDef) -> frozenset[str]:
    """What the body of a class binds, in whatever way."""
    return bound_in(node.body)
