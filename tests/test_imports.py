"""Who imports whom in nbcnn: there is no circle, and no import goes up through the layers."""
import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "nbcnn"
LAYERS = [      # the lowest first; a module imports those of its own line and of lines before it
    "files instead interrupts table threads user_cache",
    "kernels",
    "init layers losses memory optim parameter pictures precision profile progress views",
    "scheduler steps",
    "model models",
    "datasets",
    "check checkpoint evaluate evaluation find_lr fit precision_trial tensorboard",
    "",     # nbcnn itself: what a library user imports
    "cli recipes run_folder",
    "cache data evaluate.__main__ predict train __main__",
]
LATER = {       # imports within functions that go up, or would close a circle: methods that are named functions, and a layer's call
    ("nbcnn.model", "nbcnn.checkpoint"), ("nbcnn.model", "nbcnn.evaluation"), ("nbcnn.layers", "nbcnn.model")}


def imports(package):
    """(importer, imported) of all modules of a package: a set of those at the top of modules, and one of those within functions."""
    files = {".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): file
             for file in package.rglob("*.py")}
    top, later = set(), set()
    for name, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        within = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                  for node in ast.walk(function)}
        for node in ast.walk(tree):
            for target in targets(node):
                while target and target not in files:       # a.b.c may be the function c of a.b
                    target = target.rpartition(".")[0]
                if target:
                    (later if node in within else top).add((name, target))
    return top, later


def targets(node):
    """The full names that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "expected absolute imports"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def circle(edges):
    """A circle among imports as "a -> b -> a"; "" where there is none."""
    done = set()

    def follow(path):
        for name in sorted(target for source, target in edges if source == path[-1]):
            if name in path:
                return " -> ".join([*path[path.index(name):], name])
            if name not in done and (found := follow([*path, name])):
                return found
        done.add(path[-1])
        return ""
    return next(filter(None, (follow([name]) for name in sorted({source for source, _ in edges}))), "")


def layer(module):
    """The position in LAYERS of a module, or of the nearest package around it."""
    positions = {f"nbcnn.{name}".rstrip("."): k for k, line in enumerate(LAYERS) for name in line.split(" ")}
    name = module
    while name not in positions and name != "nbcnn":
        name = name.rpartition(".")[0]
    assert name != "nbcnn" or module == "nbcnn", f"{module}: expected a place in LAYERS, got none"
    return positions[name]


def upward(edges):
    return {(source, target) for source, target in edges if layer(source) < layer(target)}


TOP, WITHIN = imports(PACKAGE)


def test_no_circle():
    assert circle(TOP) == ""


def test_no_import_goes_up():
    assert upward(TOP) == set()


def test_imports_within_functions():
    assert upward(WITHIN) == LATER
    assert {edge for edge in WITHIN if circle(TOP | {edge})} <= LATER


def test_circles_are_found_by_name(tmp_path):
    package = tmp_path / "p"
    (package / "q").mkdir(parents=True)
    for name, text in {"__init__": "", "a": "import numpy\nfrom p.q import b, f", "q/__init__": "def f():\n    import p.a",
                       "q/b": "import p.c", "c": "from p.a import g"}.items():
        (package / f"{name}.py").write_text(text)
    top, within = imports(package)
    assert top == {("p.a", "p.q.b"), ("p.a", "p.q"), ("p.q.b", "p.c"), ("p.c", "p.a")} and within == {("p.q", "p.a")}
    assert circle(top) == "p.a -> p.q.b -> p.c -> p.a"
    assert circle(top - {("p.c", "p.a")}) == "" and circle((top | within) - {("p.c", "p.a")}) == "p.a -> p.q -> p.a"
