"""The rules of the tree: who may import whom, what may ship flat to the Hub, how long things may be.

Each rule is a function of a root folder that lists violations; it must find none here, and one in a small bad tree.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling_regionmed_clip", "processing", "train", "eval", "model_cards", "demo")
FLAT_FOLDERS = ("modeling_regionmed_clip", "processing")
FLAT_SHIP_IMPORTS = {"torch", "transformers", "numpy", "PIL"} | set(sys.stdlib_module_names)
ENTRY_SCRIPTS = ("train/pretrain.py", "train/finetune_vqa.py")
COMMAND_LINE_GUARD = re.compile(r"^if __name__ == ['\"]__main__['\"]", re.MULTILINE)
MODEL, PROCESSING = "modeling_regionmed_clip", "regionmed_clip.processing"
TRAIN, EVAL, CARDS = "regionmed_clip.train", "regionmed_clip.eval", "regionmed_clip.model_cards"
MAY_IMPORT = {
    "modeling_regionmed_clip": (MODEL,),
    "processing": (PROCESSING,),
    "train": (MODEL, PROCESSING, TRAIN, f"{EVAL}.tasks"),
    "eval": (MODEL, PROCESSING, EVAL),
    "model_cards": (MODEL, PROCESSING, EVAL, CARDS),
    "demo": (),  # it runs where nothing of ours is installed
}
ENTRY_SCRIPT_MAY_IMPORT = (MODEL, PROCESSING, TRAIN, EVAL, CARDS)  # they only compose: docs/decisions.md
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ENTRY_SCRIPT_LINES, MAX_TRACKED_BYTES = 400, 60, 40, 500_000
EXCUSED_LENGTHS: dict[str, str] = {  # "path" or "path:function" -> why it is longer
    "processing/corpus/medregion.py": "one file that stands alone beside a corpus on the Hub (DESIGN.md section 7)",
    "model_cards/handler.py": "one file that stands alone beside a model: an endpoint loads it by its path",
}


def python_files(root: Path, *folders: str) -> Iterator[Path]:
    """Every Python file under the given folders of the root, sorted."""
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def name_of(root: Path, path: Path) -> str:
    """The path relative to the root, with forward slashes."""
    return path.relative_to(root).as_posix()


def import_name_of(root: Path, path: Path) -> str:
    """The name under which a file of the five folders is imported once installed."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == MODEL else ("regionmed_clip", *parts))


def imports_of(root: Path, path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, absolute dotted name, relative level) of every import in the file, `from a import b` as `a.b`."""
    package = import_name_of(root, path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{stem}.{alias.name}", node.level) for alias in node.names)


def is_within(name: str, allowed: tuple[str, ...]) -> bool:
    """True if the dotted name is one of the allowed packages or lies inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in allowed)


def folder_of_import_name(root: Path) -> dict[str, str]:
    """The map of setup.py, read without running it."""
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOLDER_OF_IMPORT_NAME":
            return ast.literal_eval(node.value)
    raise ValueError(f"{root / 'setup.py'} has no FOLDER_OF_IMPORT_NAME; it must be one literal dict. Restore it.")


def wrong_directions(root: Path) -> list[str]:
    """Imports of our packages that may not come from their folder; see CONTRIBUTING.md."""
    found = []
    for path in python_files(root, *FOLDERS):
        name = name_of(root, path)
        allowed = ENTRY_SCRIPT_MAY_IMPORT if name in ENTRY_SCRIPTS else MAY_IMPORT[path.relative_to(root).parts[0]]
        for line, imported, _ in imports_of(root, path):
            if imported.split(".")[0] in (MODEL, "regionmed_clip") and not is_within(imported, allowed):
                found.append(f"{name}:{line} imports {imported}; allowed are {', '.join(allowed)}")
    return found


def bare_folder_imports(root: Path) -> list[str]:
    """Imports of `train`, `eval`, `processing`, `model_cards`, which resolve only inside a checkout."""
    return [
        f"{name_of(root, path)}:{line} imports {imported}; across folders use the installed name"
        for path in python_files(root, *FOLDERS, "tests")
        for line, imported, level in imports_of(root, path)
        if level == 0 and imported.split(".")[0] in FOLDERS[1:]
    ]


def climbing_imports(root: Path) -> list[str]:
    """Relative imports with two dots or more, and any relative import in an entry script."""
    return [
        f"{name_of(root, path)}:{line} imports {imported} with {level} dots"
        for path in python_files(root, *FOLDERS)
        for line, imported, level in imports_of(root, path)
        if level > 1 or (level and name_of(root, path) in ENTRY_SCRIPTS)
    ]


def imported_command_lines(root: Path) -> list[str]:
    """Imports of a module that a person starts: one with a `__main__` guard or named as a console script."""
    setup_text = (root / "setup.py").read_text() if (root / "setup.py").is_file() else ""
    command_lines = set(re.findall(r"= ([\w.]+):main", setup_text))
    for path in python_files(root, *FOLDERS):
        if COMMAND_LINE_GUARD.search(path.read_text()):
            command_lines.add(import_name_of(root, path))
    return [
        f"{name_of(root, path)}:{line} imports {imported}, a command-line module"
        for path in python_files(root, *FOLDERS)
        for line, imported, _ in imports_of(root, path)
        if is_within(imported, tuple(command_lines))
    ]


def shipped_files(root: Path) -> list[Path]:
    """The files that land in the flat Hub root: the top level of both shipped folders, without `__init__.py`."""
    return [p for folder in FLAT_FOLDERS for p in sorted((root / folder).glob("*.py")) if p.name != "__init__.py"]


def unshippable_imports(root: Path) -> list[str]:
    """Imports that the Hub's loader cannot follow, or packages that it would demand, in files that ship flat."""
    found = []
    for path in shipped_files(root):
        tree = ast.parse(path.read_text())
        guarded = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
        siblings = {p.stem for p in path.parent.glob("*.py")} - {"__init__"}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                if node.level != 1 or node.module not in siblings:
                    found.append(f"{name_of(root, path)}:{node.lineno} `{ast.unparse(node)}` names no sibling file")
            elif isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                for name in names:
                    if name.split(".")[0] not in FLAT_SHIP_IMPORTS:
                        found.append(f"{name_of(root, path)}:{node.lineno} imports {name} outside of a `try`")
    return found


def text_read_as_imports(root: Path) -> list[str]:
    """Lines of docstrings that the Hub's scanner, a regular expression over text, takes for relative imports."""
    found = []
    for path in shipped_files(root):
        text = path.read_text()
        real = {n.lineno for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
        for line, content in enumerate(text.splitlines(), start=1):
            if re.match(r"\s*(from\s+\.\S+\s+import|import\s+\.\S+\s*$)", content) and line not in real:
                found.append(f"{name_of(root, path)}:{line} reads as an import: {content.strip()!r}")
    return found


def shipped_twice(root: Path) -> list[str]:
    """File names that occur in both shipped folders and would overwrite each other in the flat Hub root."""
    names = [path.name for path in shipped_files(root)]
    return sorted({f"{name} is in both shipped folders" for name in names if names.count(name) > 1})


def unmapped_packages(root: Path) -> list[str]:
    """Folders with Python files that setup.py does not list, listed folders that are absent, missing `__init__.py`."""
    mapped = set(folder_of_import_name(root).values())
    present = {name_of(root, path.parent) for path in python_files(root, *FOLDERS)}
    found = [f"{folder} holds Python files and is not in setup.py" for folder in present - mapped]
    found += [f"{folder} is in setup.py and has no Python file" for folder in mapped - present]
    found += [f"{folder} has no __init__.py" for folder in present if not (root / folder / "__init__.py").is_file()]
    if (root / "regionmed_clip").exists():
        found.append("regionmed_clip/ would shadow the installed namespace")
    for name, folder in folder_of_import_name(root).items():
        expected = folder if folder == MODEL else "regionmed_clip." + folder.replace("/", ".")
        if name != expected:
            found.append(f"{folder} installs as {name} instead of {expected}")
    return sorted(found)


def borrowed_names(root: Path) -> list[str]:
    """Files under train/ and eval/ that would hide a third-party or standard module when run as a script."""
    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("-", "_") for line in lines if "==" in line}
    taken = pinned | {"pil", "yaml", "faiss", "evaluate", "sklearn"} | set(sys.stdlib_module_names)
    return [
        f"{name_of(root, path)} bears the name of a module that others import"
        for path in python_files(root, "train", "eval")
        if path.stem.lower() in taken
    ]


def oversized(root: Path) -> list[str]:
    """Functions, files and entry scripts over their budget of lines; 400 a file, 60 a function, 40 an entry."""
    found = []
    for path in python_files(root, *FOLDERS, "tests"):
        name, text = name_of(root, path), path.read_text()
        num_lines = len(text.splitlines())
        limit = MAX_ENTRY_SCRIPT_LINES - 1 if name in ENTRY_SCRIPTS else MAX_FILE_LINES
        if num_lines > limit and name not in EXCUSED_LENGTHS:
            found.append(f"{name} has {num_lines} lines; at most {limit}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES and f"{name}:{node.name}" not in EXCUSED_LENGTHS:
                    found.append(f"{name}:{node.lineno} {node.name} has {length} lines; at most {MAX_FUNCTION_LINES}")
    return found


def swallowed_errors(root: Path) -> list[str]:
    """Handlers that catch everything by no name, or whose whole answer is `pass`."""
    return [
        f"{name_of(root, path)}:{node.lineno} drops an exception"
        for path in python_files(root, *FOLDERS, "tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or all(ast.unparse(statement) in ("pass", "...") for statement in node.body))
    ]


def unsafe_reads(root: Path) -> list[str]:
    """Imports of pickle and its kin, and calls that unpickle: torch.load without weights_only, numpy's allow_pickle."""
    found = []
    for path in python_files(root, *FOLDERS):
        for line, imported, _ in imports_of(root, path):
            if imported.split(".")[0] in UNSAFE_MODULES:
                found.append(f"{name_of(root, path)}:{line} imports {imported}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if ast.unparse(node.func) == "torch.load" and options.get("weights_only") != "True":
                    found.append(f"{name_of(root, path)}:{node.lineno} torch.load needs weights_only=True")
                if options.get("allow_pickle", "False") != "False":
                    found.append(f"{name_of(root, path)}:{node.lineno} allows pickle")
    return found


def heavy_files(root: Path) -> list[str]:
    """Files that git tracks, or would on `git add .`, above 500 kB."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [root / name for name in names if name and (root / name).is_file()]
    return [f"{name_of(root, p)} has {p.stat().st_size} bytes" for p in paths if p.stat().st_size > MAX_TRACKED_BYTES]


def dead_links(root: Path) -> list[str]:
    """Links between documents, and recipes or launch files that documents or code name, which lead nowhere."""
    found = []
    documents = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    others = [root / name for name in (".ci/run", "Makefile") if (root / name).is_file()]
    for path in [*documents, *others, *python_files(root, *FOLDERS)]:
        text = path.read_text()
        links = [path.parent / target for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)]
        links = links if path in documents else []
        links += [root / target for target in re.findall(r"\btrain/(?:recipes|accelerate)/\w+\.yaml", text)]
        found += [f"{name_of(root, path)} points at {target.name}" for target in links if not target.exists()]
    return sorted(set(found))


RULES: list[Callable[[Path], list[str]]] = [
    wrong_directions,
    bare_folder_imports,
    climbing_imports,
    imported_command_lines,
    unshippable_imports,
    text_read_as_imports,
    shipped_twice,
    unmapped_packages,
    borrowed_names,
    oversized,
    swallowed_errors,
    unsafe_reads,
    heavy_files,
    dead_links,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule):
    found = rule(ROOT)
    assert not found, "\n".join(found)


BAD_TREES = [
    (wrong_directions, {"processing/a.py": "from modeling_regionmed_clip.roi_processor import RoiProcessor"}),
    (wrong_directions, {"modeling_regionmed_clip/a.py": "def f():\n    import regionmed_clip.processing"}),
    (wrong_directions, {"train/a.py": "from regionmed_clip.eval.report import write_report"}),
    (wrong_directions, {"train/a.py": "from regionmed_clip import model_cards"}),
    (wrong_directions, {"demo/a.py": "from regionmed_clip.processing.region_boxes import box_coverage"}),
    (wrong_directions, {"eval/tasks/a.py": "from regionmed_clip.train import tokenizer"}),
    (wrong_directions, {"model_cards/a.py": "import regionmed_clip.train.stages"}),
    (bare_folder_imports, {"tests/test_a.py": "from processing.region_boxes import f"}),
    (bare_folder_imports, {"train/a.py": "import eval.tasks"}),
    (climbing_imports, {"processing/corpus/a.py": "from ..region_boxes import f"}),
    (climbing_imports, {"train/pretrain.py": "from .stages import f"}),
    (
        imported_command_lines,
        {"eval/run.py": "if __name__ == '__main__':\n    main()", "eval/a.py": "from .run import f"},
    ),
    (
        imported_command_lines,
        {"setup.py": "'x = regionmed_clip.eval.go:main'", "model_cards/a.py": "from regionmed_clip.eval import go"},
    ),
    (unshippable_imports, {"processing/a.py": "from . import region_boxes"}),
    (unshippable_imports, {"processing/a.py": "from .absent import f"}),
    (unshippable_imports, {"processing/a.py": "def f():\n    import torchvision"}),
    (text_read_as_imports, {"processing/a.py": '"""Example:\n    from .b import f\n"""'}),
    (shipped_twice, {"processing/boxes.py": "", "modeling_regionmed_clip/boxes.py": ""}),
    (unmapped_packages, {"setup.py": "FOLDER_OF_IMPORT_NAME = {}", "eval/__init__.py": ""}),
    (
        unmapped_packages,
        {"setup.py": "FOLDER_OF_IMPORT_NAME = {'regionmed_clip.eval': 'eval'}", "eval/run.py": "x = 1"},
    ),
    (borrowed_names, {"constraints.txt": "accelerate==1", "train/accelerate.py": ""}),
    (borrowed_names, {"constraints.txt": "", "eval/statistics.py": ""}),
    (oversized, {"train/a.py": "x = 1\n" * 401}),
    (oversized, {"train/a.py": "def f():\n" + "    x = 1\n" * 60}),
    (oversized, {"train/pretrain.py": "x = 1\n" * 40}),
    (swallowed_errors, {"train/a.py": "try:\n    f()\nexcept ValueError:\n    pass"}),
    (swallowed_errors, {"train/a.py": "try:\n    f()\nexcept:\n    g()"}),
    (unsafe_reads, {"train/a.py": "def f():\n    import pickle"}),
    (unsafe_reads, {"train/a.py": "torch.load(path)"}),
    (unsafe_reads, {"train/a.py": "np.load(path, allow_pickle=True)"}),
    (heavy_files, {"docs/a.txt": "x" * 500_001}),
    (dead_links, {"docs/a.md": "[b](b.md) [c](https://example.org/c) [self](a.md)"}),
    (dead_links, {"README.md": "run train/recipes/absent.yaml"}),
]


@pytest.mark.parametrize(("rule", "files"), BAD_TREES, ids=lambda part: getattr(part, "__name__", None))
def test_the_rule_finds_its_violation_in_a_bad_tree(rule, files, tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = rule(tmp_path)
    assert len(found) == 1, found


def test_a_guarded_import_and_a_sibling_ship(tmp_path):
    (tmp_path / "processing").mkdir()
    (tmp_path / "processing" / "boxes.py").write_text("import math\n")
    guarded = "try:\n    import pydicom\nexcept ImportError:\n    pydicom = None\n"
    text = "from .boxes import f\nfrom PIL import Image\n" + guarded
    (tmp_path / "processing" / "images.py").write_text(text)
    assert unshippable_imports(tmp_path) == []


def test_an_entry_script_may_compose_training_evaluation_and_cards(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "pretrain.py").write_text(
        "from regionmed_clip.eval.report import write_report\nfrom regionmed_clip.model_cards.stage import f\n"
    )
    assert wrong_directions(tmp_path) == []
