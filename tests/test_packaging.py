"""What is installed: one copy of each file under `edgevlm`, and a runtime side without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgevlm import registry

ROOT = Path(__file__).parents[1]
PLUG_IN = "optimum/commands/register/register_edgevlm.py"
LINKS = ("devices", "exporters", "runtimes")
REGISTRIES = ("FAMILIES", "METHODS", "DATASETS", "TARGETS", "ENGINES", "DEVICES")
# What a machine that only runs bundles does not have.
EXPORT_ONLY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "optimum")


def python(*arguments: object) -> str:
    """Stdout of this interpreter; its stderr is the message of a failed test."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkout(folder: Path, links: bool) -> Path:
    """A copy of what the wheel is made of; without links as where git cannot make them."""
    ignore = shutil.ignore_patterns("__pycache__", *LINKS)
    shutil.copytree(ROOT / "edgevlm", folder / "edgevlm", ignore=ignore)
    for name in LINKS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        link = folder / "edgevlm" / name
        if links:
            link.symlink_to(f"../{name}", target_is_directory=True)
        else:
            link.write_text(f"../{name}")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(source: Path, out: Path, *options: str) -> Path:
    """The wheel of `source`, by the setuptools of this environment."""
    pytest.importorskip("build")
    python("-m", "build", "--no-isolation", "--outdir", out, *options, source)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that comes out of the source distribution, as an index would have both."""
    folder = tmp_path_factory.mktemp("build")
    return build(checkout(folder / "source", links=True), folder / "dist")


def contents(wheel: Path) -> list[str]:
    """Names in a wheel, its metadata left out."""
    with zipfile.ZipFile(wheel) as file:
        return sorted(name for name in file.namelist() if ".dist-info/" not in name)


def test_wheel_holds_each_file_once(wheel):
    packages = {"edgevlm": ROOT / "edgevlm"} | {f"edgevlm/{name}": ROOT / name for name in LINKS}
    expected = [PLUG_IN]
    for package, folder in packages.items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            linked = package == "edgevlm" and inside.parts[0] in (*LINKS, "_optimum")
            if path.is_file() and not linked and "__pycache__" not in inside.parts:
                expected.append(f"{package}/{inside.as_posix()}")
    assert contents(wheel) == sorted(expected)
    data = ("embedded/model.safetensors", "photos/flower.jpg", "devices/named/iphone-15-pro.toml",
            "evaluation/datasets/material/hands.jpg", "profiling/profile.schema.json")  # fmt: skip
    assert {f"edgevlm/{name}" for name in data} <= set(expected)
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        assert "\nLicense-Expression: Apache-2.0\n" in file.read(metadata).decode()


def test_checkout_without_links_makes_the_same_wheel(wheel, tmp_path):
    other = build(checkout(tmp_path / "source", links=False), tmp_path / "dist", "--wheel")
    assert contents(other) == contents(wheel)


def test_a_tree_with_text_files_for_links_says_what_to_do(tmp_path):
    """Where another copy is installed, it must not answer for the folders that are missing."""
    tree, other = tmp_path / "tree", tmp_path / "other"
    tree.mkdir()
    other.mkdir()
    checkout(tree, links=False)
    checkout(other, links=True)
    script = f"""
import importlib.abc, importlib.util, sys
class Editable(importlib.abc.MetaPathFinder):  # as an editable install of the other tree has it
    def find_spec(self, name, path=None, target=None):
        if name in ("edgevlm.exporters", "edgevlm.runtimes", "edgevlm.devices"):
            folder = {str(other)!r} + "/" + name.partition(".")[2]
            return importlib.util.spec_from_file_location(name, folder + "/__init__.py")
sys.meta_path.append(Editable())
sys.path.insert(0, {str(tree)!r})
try:
    import edgevlm
except ImportError as error:
    print(error)
"""
    line = python("-I", "-S", "-c", script).strip()
    assert line == (
        f"'{tree}' has no link edgevlm/exporters to ../exporters, so it cannot be imported as it"
        f" is; run: pip install -e '{tree}'"
    )


def test_installed_wheel_finds_its_plug_ins(wheel, tmp_path):
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, wheel)
    # -I and -S: neither this checkout nor an editable install of it can answer instead.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    script = f"""
import json, sys
sys.path[:0] = [{str(tmp_path)!r}]
sys.path += {libraries!r}
import edgevlm, edgevlm.cli, edgevlm.devices, edgevlm.exporters, edgevlm.runtimes.loops.images
import optimum.commands.register
from edgevlm import registry
from edgevlm.devices.shared import named
modules = [m for name, m in sys.modules.items() if name.startswith("edgevlm")]
print(json.dumps({{
    "files": [m.__file__ for m in modules],
    "optimum": list(optimum.commands.register.__path__),
    "names": {{name: getattr(registry, name).names() for name in {REGISTRIES!r}}},
    "devices": [named.load(name).name for name in named.names()],
}}))
"""
    found = json.loads(python("-I", "-S", "-c", script))
    assert all(Path(file).is_relative_to(tmp_path) for file in found["files"])
    assert str(tmp_path / Path(PLUG_IN).parent) in found["optimum"]
    assert found["names"] == {name: getattr(registry, name).names() for name in REGISTRIES}
    assert all(found["names"].values())
    assert found["devices"] == sorted(
        path.stem for path in (ROOT / "devices" / "named").glob("*.toml")
    )
    assert (tmp_path / "bin" / "edgevlm").is_file()


TOY_DATASET = '''"""Toys."""
SUMMARY, PATH, ENDINGS = "one toy", "a .toy file", (".toy",)
def examples(path, frames=1, limit=None):
    return iter(())
'''


def test_a_dataset_and_a_device_are_found_by_their_files(copied_tree, tmp_path, commands_of):
    """One file each, laid into a copy: no line elsewhere names them."""
    copy = copied_tree(tmp_path)
    (copy / "edgevlm" / "evaluation" / "datasets" / "toy_box.py").write_text(TOY_DATASET)
    named = copy / "devices" / "named"
    text = (named / "raspberry-pi-5.toml").read_text("utf-8")
    (named / "toy-phone.toml").write_text(text.replace("raspberry-pi-5", "toy-phone"), "utf-8")
    (copy / "a.toy").touch()

    asked = [["evaluate", "--dataset", name] for name in ("toy-bix", "toy-box", "b.toy", "a.toy")]
    *failed, devices = commands_of(copy, *asked, ["devices", "--json"])
    assert [code for code, _, _ in failed] == [1] * 4
    typo, no_path, no_file, empty = [said for _, _, said in failed]
    assert "did you mean 'toy_box'? known: " in typo
    assert no_path == "edgevlm: dataset 'toy-box' needs a path: toy-box:PATH, a .toy file\n"
    assert no_file == "edgevlm: no file of questions at 'b.toy'\n"
    assert empty.splitlines()[-1] == "edgevlm: dataset 'a.toy' asks nothing"
    code, out, said = devices
    assert code == 0, said
    names = [device["name"] for device in json.loads(out)["named"]]
    assert names == sorted(path.stem for path in named.glob("*.toml"))
    assert "toy-phone" in names


def test_the_runtime_side_imports_nothing_of_the_export_side():
    exporting = ("evaluation/pytorch.py",)
    folders = ("bundle", "cli", "devices", "evaluation", "profiling", "runtimes")
    paths = [path for name in folders for path in (ROOT / "edgevlm" / name).resolve().rglob("*.py")]
    paths += [ROOT / "edgevlm" / f"{name}.py" for name in ("api", "errors", "recipe", "registry")]
    modules = []
    for path in paths:
        inside = path.relative_to(ROOT).as_posix().removeprefix("edgevlm/")
        if inside not in exporting:
            name = inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            modules.append(f"edgevlm.{name}")
    script = f"""
import importlib, sys
for name in {sorted(modules)!r}:
    importlib.import_module(name)
    heavy = sorted(set({EXPORT_ONLY!r}) & set(sys.modules))
    assert not heavy, f"{{name}} imports {{', '.join(heavy)}}"
"""
    python("-c", script)


@pytest.mark.slow
@pytest.mark.network
def test_a_bundle_runs_where_only_the_engine_is_installed(wheel, exported, tmp_path):
    bundle = exported.bundle.path
    python("-m", "venv", tmp_path / "venv")
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [scripts / "python", "-m", "pip", "install", "--quiet", f"{wheel}[onnxruntime]"]
    subprocess.run(pip, check=True, cwd=tmp_path)
    photo = ROOT / "edgevlm" / "photos" / "flower.jpg"
    command = [scripts / "edgevlm", "run", bundle, "--image", photo, "--prompt", "What?", "--json"]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1])["visual_tokens"] == 16
    pip = [scripts / "python", "-m", "pip", "list", "--format", "json"]
    installed = subprocess.run(pip, check=True, capture_output=True, text=True).stdout
    assert not set(EXPORT_ONLY) & {entry["name"] for entry in json.loads(installed)}
