"""The project's own rules, run. Each must find every offender planted for it, and nothing in the good lines."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import READ_TINY

ROOT = Path(__file__).resolve().parent.parent
SKIPS_ALLOWED = {
    "tests/chromium.py": "a browser is no part of the set-up; CI installs one",
    "tests/conftest.py": "of the slow suite, what a limit of time leaves is skipped, and listed at the end",
}
"""Files in which a test may be skipped: path -> reason."""
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
ARROW_FUNCTIONS = {"pandas_udf", "arrow_udf", "mapInPandas", "mapInArrow", "applyInPandas", "applyInArrow"}
NOT_IN_CONNECT = {"sparkContext", "SparkContext", "rdd", "_jvm", "_jsc", "_jdf"}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
UNSAFE_NAMES = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle"}
LOADERS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
# Paths of one machine and hosts of registries, written so that these lines do not match themselves.
FOREIGN = re.compile(
    r"(?<![\w.])/(?:[w]ork|[r]oot|tmp/[w])/|(pypi|pythonhosted|npmjs|maven|maven\.apache|deb\.debian)\.(org|com)\b"
)
Found = Iterator[tuple[int, str]]  # line, what is wrong there


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute; `.b.c` where something else than a name is before the dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def last(node: ast.AST) -> str:
    return dotted(node).rpartition(".")[2]


def nodes(tree: ast.AST, *kinds: type[ast.AST]) -> Iterator[Any]:
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


def applied(tree: ast.AST) -> Iterator[ast.expr]:
    """What is called, and what decorates without a call."""
    yield from (call.func for call in nodes(tree, ast.Call))
    yield from (d for f in nodes(tree, *FUNCTION) for d in f.decorator_list if not isinstance(d, ast.Call))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    yield from ((node.lineno, alias.name) for node in nodes(tree, ast.Import) for alias in node.names)
    for node in nodes(tree, ast.ImportFrom):
        yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if node.level == 0)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String constants in use: a string that is a statement documents what is before or around it."""
    docs = {id(node.value) for node in nodes(tree, ast.Expr)}
    used = (node for node in nodes(tree, ast.Constant) if id(node) not in docs)
    return ((node.lineno, node.value) for node in used if isinstance(node.value, str))


def delta_spoken(source: str, tree: ast.AST) -> Found:
    yield from ((line, name) for line, name in imports(tree) if name.split(".")[0] == "delta")
    for line, text in strings(tree):
        if text == "delta" or re.search(r"\bdelta\.|(?i:using delta\b)", text):
            yield line, f"string {text[:40]!r}"
    names = ((node.lineno, dotted(node)) for node in nodes(tree, ast.Name, ast.Attribute))
    yield from ((line, name) for line, name in names if re.search(r"^delta\.|\bDeltaTable\b", name))


def prints(source: str, tree: ast.AST) -> Found:
    return ((node.lineno, "print") for node in applied(tree) if dotted(node) == "print")


def spark_in_models(source: str, tree: ast.AST) -> Found:
    return ((line, name) for line, name in imports(tree) if name.split(".")[0] in {"pyspark", "etl", "delta"})


def outside_connect(source: str, tree: ast.AST) -> Found:
    yield from ((line, text) for line, text in strings(tree) if text in NOT_IN_CONNECT)
    names = ((node.lineno, last(node)) for node in nodes(tree, ast.Name, ast.Attribute))
    yield from ((line, name) for line, name in names if name in NOT_IN_CONNECT)


def unsafe(source: str, tree: ast.AST) -> Found:
    yield from ((line, name) for line, name in imports(tree) if name.split(".")[0] in UNSAFE_MODULES)
    for call in nodes(tree, ast.Call):
        given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        name = dotted(call.func)
        option, wanted = LOADERS.get(name.replace("numpy", "np"), ("", None))
        if name in UNSAFE_NAMES or given.get("shell") is True or (option and given.get(option) is not wanted):
            yield call.lineno, f"{name}(...) {f'without {option}={wanted}' if option else ''}"


def row_at_a_time(source: str, tree: ast.AST) -> Found:
    names = {"udf", "udtf", "foreach", "foreachPartition"}
    yield from ((node.lineno, last(node)) for node in applied(tree) if last(node) in names)
    yield from ((line, name) for line, name in imports(tree) if name.rpartition(".")[2] in names)


def without_reason(source: str, tree: ast.AST) -> Found:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [(t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT]
    reasons = {line for line, text in comments if re.match(r"#+ (?!noqa|type:)\S+ \S+ \S+", text)}
    for node in applied(tree):
        if last(node) in ARROW_FUNCTIONS and not reasons & {node.end_lineno, (node.end_lineno or 0) - 1}:
            yield node.lineno, f"{last(node)}: say why in a comment on this line or the line above"


def too_long(source: str, tree: ast.AST, max_file: int = 300, max_function: int = 75) -> Found:
    if (num_lines := len(source.splitlines())) > max_file:
        yield 1, f"{num_lines} lines, at most {max_file}"
    for f in nodes(tree, *FUNCTION):
        if (num_lines := (f.end_lineno or 0) - f.lineno + 1) > max_function:
            yield f.lineno, f"{f.name} has {num_lines} lines, at most {max_function}"


def no_docstring(source: str, tree: ast.Module) -> Found:
    if not ast.get_docstring(tree):
        yield 1, "no docstring"


def asserts_nothing(source: str, tree: ast.AST) -> Found:
    helper = re.compile(r"pytest\.raises$|(.*\.)?_?(assert|check(?!_output|_call))\w*$")
    for f in nodes(tree, *FUNCTION):
        checked = any(nodes(f, ast.Assert)) or any(helper.match(dotted(call.func)) for call in nodes(f, ast.Call))
        if f.name.startswith("test") and not checked:
            yield f.lineno, f"{f.name} asserts nothing"


def skips(source: str, tree: ast.AST) -> Found:
    banned = re.compile(r"pytest\.(mark\.)?(skip|skipif|importorskip|xfail)$")
    return ((node.lineno, dotted(node)) for node in nodes(tree, ast.Attribute) if banned.match(dotted(node)))


def notebook_too_long(source: str, tree: ast.AST) -> Found:
    return too_long(source, tree, max_file=79)


def machine_path_or_registry_host(source: str, tree: None) -> Found:
    return ((i, line) for i, line in enumerate(source.splitlines(), 1) if FOREIGN.search(line))


class Rule(NamedTuple):
    find: Callable[..., Found]
    where: str  # the paths that it covers, as a pattern
    bad: str  # offenders between bars: each must be found
    good: str  # one text in which nothing may be found
    but: Collection[str] = ()  # paths that it does not cover


CODE, ALL_CODE, TESTS = r"(etl|models)/.*\.py", r"(etl|models|notebooks)/.*\.py", r"tests/test_.*\.py"
LONG = "def f():\n" + "    x = 1\n" * 74  # 75 lines
RULES = [
    Rule(
        delta_spoken,
        ALL_CODE,
        "df.write.format('delta') | from delta.tables import DeltaTable | f'FROM delta.`{path}`' | delta.tables.x()"
        " | conf = {'spark.databricks.delta.retention': 1} | sql('CREATE TABLE t (a INT) USING DELTA')",
        '"""Writes a delta.io table."""\nclass C:\n    a: int\n    """A delta.x"""\n# format("delta")',
        but=["etl/store.py", "etl/session.py", "etl/jvm.py"],
    ),
    Rule(prints, CODE, "print(1)", "console.print(1)"),
    Rule(spark_in_models, "models/.*py", "import pyspark | from etl.store import x | from etl import run", "import re"),
    Rule(outside_connect, ALL_CODE, "spark.sparkContext | df.rdd.map(f) | getattr(s, '_jvm')", "get('spark.rdd.x')"),
    Rule(
        unsafe,
        ALL_CODE,
        "import pickle | from pickle import loads | eval(s) | exec(s) | run(a, shell=True) | yaml.load(s)"
        " | torch.load(p) | torch.load(p, weights_only=False) | np.load(p) | np.load(p, allow_pickle=True)",
        "build().eval(); yaml.safe_load(s); torch.load(p, weights_only=True); np.load(p, allow_pickle=False); run(a)",
    ),
    Rule(
        row_at_a_time,
        ALL_CODE,
        "@udf\ndef f(): ... | F.udf(f) | @F.udf('int')\ndef f(): ... | from pyspark.sql.functions import udf as u",
        "spark.udf.register('dfn_score', dfn_score)",
    ),
    Rule(
        without_reason,
        ALL_CODE,
        "df.mapInPandas(f) | (df\n .select(a)\n .mapInArrow(f)) | @pandas_udf('int')  # noqa: E5 and so\ndef f(): ...",
        "# decodes images, which SQL cannot\ndf.mapInPandas(f)\n(df\n .mapInArrow(f)  # many rows from one tar\n)",
    ),
    Rule(too_long, CODE, "x = 1\n" * 301 + " | " + LONG + "    x = 1\n", LONG + "y = 1\n" * 225),
    Rule(no_docstring, CODE, " | import os", '"""What it is."""'),
    Rule(
        asserts_nothing,
        TESTS,
        "def test_a():\n    run() | class TestA:\n    def test_b(self): ... | def test_c():\n    check_call(x)",
        "def test_a():\n    assert x\ndef test_b():\n    with pytest.raises(E): f()\ndef test_c():\n    check_rows(df)",
    ),
    Rule(
        skips,
        TESTS,
        "pytest.skip('no') | @pytest.mark.skipif(True)\ndef f(): ... | x = pytest.importorskip('x')",
        "pytest.mark.parametrize; rows.skip(3)",
        but=SKIPS_ALLOWED,
    ),
    Rule(notebook_too_long, "notebooks/.*py", "#\n" * 80, "#\n" * 79),
    Rule(
        machine_path_or_registry_host,
        ".*",
        f"cd {'/'}work/x | '{'/'}root/.x' | {'/'}tmp/w/x | https://{'pypi'}.org/x | {'deb.debian'}.org",
        "ROOT/work/ or /tmp/x, from PyPI",
        but=["uv.lock"],
    ),
]
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.find.__name__)


def repository_files() -> list[str]:
    """Tracked, and not yet tracked but not ignored."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return sorted(path for path in listed if path and (ROOT / path).is_file())


def find(rule: Rule, source: str, path: str = "x.py", **limits: int) -> list[str]:
    tree = None if rule.where == ".*" else ast.parse(source)
    return [f"{path}:{line}: {what}" for line, what in rule.find(source, tree, **limits)]


def find_in_repository(rule: Rule, **limits: int) -> list[str]:
    paths = [p for p in repository_files() if re.fullmatch(rule.where, p) and p not in rule.but]
    found = (find(rule, (ROOT / path).read_bytes().decode(errors="replace"), path, **limits) for path in paths)
    return [line for lines in found for line in lines]


@by_name
def test_the_repository_keeps_the_rule(rule: Rule) -> None:
    found = find_in_repository(rule)
    assert not found, "\n".join(["", *found])


@by_name
def test_the_rule_finds_what_breaks_it_and_nothing_else(rule: Rule) -> None:
    assert [bad for bad in rule.bad.split(" | ") if not find(rule, bad)] == []
    assert find(rule, rule.good) == []


def test_what_is_longer_than_aimed_at_is_listed() -> None:
    rule = next(rule for rule in RULES if rule.find is too_long)
    aim = {"max_file": 250, "max_function": 60}
    assert find(rule, "x = 1\n" * 251, **aim)
    for line in find_in_repository(rule, **aim):
        warnings.warn(f"longer than aimed at: {line}", stacklevel=1)


def test_files_that_share_the_tiny_recipe_are_known_to_the_scheduler() -> None:
    """Else it would run in both processes of `make test`."""
    found = {
        path.name
        for path in (ROOT / "tests").glob("test_*.py")
        for function in nodes(ast.parse(path.read_text()), *FUNCTION)
        if {"tiny", "tiny_output"} & {arg.arg for arg in function.args.args}
    }
    assert found == READ_TINY


def test_every_dependency_is_locked_with_hashes_and_comes_from_a_registry() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    files = {p["name"]: [*p.get("wheels", []), *([p["sdist"]] if "sdist" in p else [])] for p in packages}
    assert len(files) > 150
    assert [name for name, found in files.items() if not found] == ["dfn-etl"]
    assert [f["url"] for found in files.values() for f in found if not f["hash"].startswith("sha256:")] == []
    assert {key for p in packages for key in p["source"]} == {"registry", "editable"}


def test_nothing_beside_the_main_file_hides_the_standard_library() -> None:
    """spark-submit of `etl/__main__.py` puts `etl/` first on the path: `etl/select/` would be everyone's `select`."""
    beside = {Path(path).parts[1].removesuffix(".py") for path in repository_files() if path.startswith("etl/")}
    assert "config" in beside
    assert beside & sys.stdlib_module_names == set()
