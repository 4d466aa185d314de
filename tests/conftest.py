"""Shared by all tests: own caches, tiny models, one small bundle, the command as a process."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
gc.disable()  # until the first test: what collecting them imports stays
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import ONNX Runtime themselves too

# Where bytecode is not kept, every process of a test compiles this package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core; torch reads this when imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers():
    """One worker more than cores: tests of devices wait for ssh, adb and phones."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def _objects_set_aside():
    """Exports do not ask whether objects are set aside, by the next fixture.

    They make millions of objects and few cycles, which Python looks for after each 700.
    """
    from edgevlm.libraries import objects_set_aside

    with objects_set_aside():
        gc.set_threshold(10_000, 10, 10)
        gc.enable()
        yield


@pytest.fixture(scope="module", autouse=True)
def _garbage_collection_skips_libraries(_objects_set_aside):
    """Objects alive now (libraries, session fixtures) are not searched: a quarter of an export."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, write)`: a path that all workers of this run share; the first one writes it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker's folder lies in that of the run
        root = root.parent

    def give(name, write):
        path, partial = root / name, root / f".{name}"
        with (root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            if not path.exists():
                write(partial)
                partial.rename(path)
        return path

    return give


@pytest.fixture(scope="session")
def preset(once):
    """`preset("tiny-smolvlm")`: the folder of a preset of samples/make_checkpoint.py, written once.

    Nobody writes into it.
    """
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from make_checkpoint import make_checkpoint

    def make(name):
        if Path(name).is_dir():  # a checkpoint that a test wrote
            return Path(name)
        return once(name, lambda folder: make_checkpoint(name, folder))

    return make


@pytest.fixture(scope="session")
def with_layers(preset, once):
    """`with_layers("tiny-smolvlm", 3)`: a preset whose decoder has so many layers, its own in turn.

    Nobody writes into its folder.
    """
    mark = "text_model.layers."

    def make(name, count):
        def write(folder):
            from safetensors.torch import load_file, save_file

            shutil.copytree(preset(name), folder)
            config = json.loads((folder / "config.json").read_text())
            text = config["text_config"]
            own, text["num_hidden_layers"] = text["num_hidden_layers"], count
            (folder / "config.json").write_text(json.dumps(config))
            tensors = load_file(folder / "model.safetensors")
            written = {key: tensor for key, tensor in tensors.items() if mark not in key}
            for layer in range(count):
                place = f"{mark}{layer % own}."
                written |= {
                    key.replace(place, f"{mark}{layer}."): tensor.clone()
                    for key, tensor in tensors.items()
                    if place in key
                }
            save_file(written, folder / "model.safetensors", {"format": "pt"})

        return once(f"{name}-{count}-layers", write)

    return make


@pytest.fixture(scope="session")
def tiny_model(preset):
    """What `--model` takes where any model will do: 64 visual tokens, two layers."""
    return str(preset("tiny-smolvlm"))


@pytest.fixture(scope="session")
def exported(tiny_model, once):
    """`.bundle`: a tiny model at 16 tokens, exported once a run; nobody writes into it.

    Blocks are small, so that every stage but `reduce` has several.
    """
    for module in ("onnx_ir", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from edgevlm.bundle.files import Bundle
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    recipe = Recipe(model=tiny_model, tokens=16, block_size_bytes=100_000)

    def write(folder):
        folder.mkdir()
        export(recipe, folder / "tiny.edgevlm")

    return SimpleNamespace(bundle=Bundle.open(once("exported", write) / "tiny.edgevlm"))


@pytest.fixture(scope="session")
def tiny_pipeline(once):
    """The folder of a tiny Wan pipeline with random weights; nobody writes into it."""
    pytest.importorskip("diffusers")
    from make_pipeline import make_pipeline

    return once("tiny-wan", lambda out: make_pipeline("tiny-wan", out))


@pytest.fixture(scope="session")
def own_pipeline():
    """`own_pipeline(folder)`: diffusers' WanPipeline of a folder, put together from components.

    Its own way to load one asks for a further library.
    """
    diffusers = pytest.importorskip("diffusers")

    def load(folder):
        import transformers
        from safetensors.torch import load_file

        def component(kind, name):
            module = kind.from_config(kind.load_config(folder / name))
            file = folder / name / "diffusion_pytorch_model.safetensors"
            module.load_state_dict(load_file(file))
            return module.eval()

        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        pipeline = diffusers.WanPipeline(
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
            transformer=component(diffusers.WanTransformer3DModel, "transformer"),
            vae=component(diffusers.AutoencoderKLWan, "vae"),
            scheduler=getattr(diffusers, config["_class_name"]).from_config(config),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@pytest.fixture(scope="session")
def video_bundle(tiny_pipeline, once):
    """The tiny pipeline's bundle: 5 frames of 48x32, 4 steps; nobody writes into it."""
    for module in ("onnx_ir", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from edgevlm.bundle.files import Bundle
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    recipe = Recipe(
        model=str(tiny_pipeline), frames=5, size=(32, 48), steps=4, block_size_bytes=120_000
    )
    return Bundle.open(once("tiny-wan.edgevlm", lambda out: export(recipe, out)))


@pytest.fixture(scope="session")
def lowered_once():
    """`lowered_once(recipe, out)`: an export that lowers no graph that an earlier one has lowered.

    A block's signature says all that its graph depends on beside the checkpoint and what the target
    does with the stage; `reduce` is lowered each time.
    """
    from edgevlm.pipeline import export

    made = defaultdict(dict)

    def call(recipe, out, **options):
        def alike(stage):
            how = (recipe.backend, recipe.scheme(stage), recipe.calibrate)
            return made[stage, recipe.model, recipe.target, how]

        shared = {}
        for stage in ("vision", "decoder", "head", "text"):
            shared |= alike(stage)
        done = export(recipe, out, graphs=shared, **options)
        for key, graph in shared.items():
            alike(key[0])[key] = graph
        return done

    return call


@pytest.fixture(scope="session")
def coreml_bundle(tiny_model, once):
    """The tiny model at 16 tokens as Core ML packages, exported once a run; nobody writes there."""
    for module in ("coremltools", "onnxscript"):
        pytest.importorskip(module)
    from edgevlm.bundle.files import Bundle
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    recipe = Recipe(model=tiny_model, target="coreml", tokens=16, methods=("strided",))
    return Bundle.open(once("coreml.edgevlm", lambda out: export(recipe, out)))


@pytest.fixture(scope="session")
def coreml_halves(tiny_model, once):
    """The same in float16, with several blocks of one signature, each with its own weights."""
    for module in ("coremltools", "onnxscript"):
        pytest.importorskip(module)
    from edgevlm.bundle.files import Bundle
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    recipe = Recipe(
        model=tiny_model, target="coreml", tokens=16, methods=("strided",), quantize="fp16",
        block_size_bytes=100_000,
    )  # fmt: skip
    return Bundle.open(once("coreml-halves.edgevlm", lambda out: export(recipe, out)))


@pytest.fixture(scope="session")
def embedder(preset, once):
    """`embedder("tiny-clip")`: a tiny encoder, exported once a run, with its verification.

    Nobody writes into it.
    """
    for module in ("onnx_ir", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from edgevlm.bundle.files import Bundle
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    def make(name):
        recipe = Recipe(model=str(preset(name)), block_size_bytes=100_000)

        def write(folder):
            folder.mkdir()
            done = export(recipe, folder / f"{name}.edgevlm")
            (folder / "verification").write_bytes(pickle.dumps(done.verification))

        folder = once(f"embedder-{name}", write)
        verification = pickle.loads((folder / "verification").read_bytes())
        bundle = Bundle.open(folder / f"{name}.edgevlm")
        return SimpleNamespace(bundle=bundle, verification=verification)

    return make


@pytest.fixture
def bundle_copy(exported, tmp_path):
    """A copy of the session's bundle, to be damaged."""
    return Path(shutil.copytree(exported.bundle.path, tmp_path / "copy.edgevlm"))


@pytest.fixture
def edited(bundle_copy):
    """A function that changes the manifest of a copy of the bundle, and gives the copy's path."""

    def change(edit):
        path = bundle_copy / "manifest.json"
        document = json.loads(path.read_text("utf-8"))
        edit(document)
        path.write_text(json.dumps(document), "utf-8")
        return bundle_copy

    return change


@pytest.fixture(scope="session")
def tree():
    """All files of a folder: name -> contents."""

    def read(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture
def run():
    """Run a command in this process; anything but our own exit fails the test."""
    from typer.testing import CliRunner

    from edgevlm.cli import app

    def call(*arguments, stdin=None):
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


@pytest.fixture(scope="session")
def start():
    """Start the `edgevlm` command as a process of its own; `before` is Python that runs first."""

    def process(*arguments, before=""):
        code = f"import sys\n{before}\nfrom edgevlm.cli import main\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
            # A test run in the background ignores Ctrl-C, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return process


@pytest.fixture(scope="session")
def copied_tree():
    """`copied_tree(folder, *left_out)`: the package in a folder, with its links.

    What Python has compiled of it comes along. `*.pyc.*` are files that another worker writes now.
    """

    def copy(folder, *left_out):
        ignore = shutil.ignore_patterns("*.pyc.*", *left_out)
        for name in ("edgevlm", "exporters", "runtimes", "devices"):
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
        return folder

    return copy


@pytest.fixture(scope="session")
def forked():
    """`forked(act)`: a process that is a copy of this one and acts: pid, and what it writes.

    The libraries are imported in it, which is most of the time of a command.
    """

    def start(act):
        reader, writer = os.pipe()
        if pid := os.fork():
            os.close(writer)
            return pid, open(reader, encoding="utf-8")
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)  # threads of a pool are not copied
            for number in (1, 2):
                os.dup2(writer, number)
            # Those of a test may write into pytest's own files.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8") for number in (1, 2))
            code = act() or 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    return start


@pytest.fixture(scope="session")
def commands_of(forked, tmp_path_factory):
    """`commands_of(tree, *commands)`: commands of a copied tree, one after the other in a process.

    Exit code, stdout and stderr of each.
    """

    def run(tree, *commands):
        answers = tmp_path_factory.mktemp("commands") / "answers.json"

        def act():
            for name in [name for name in sys.modules if name.partition(".")[0] == "edgevlm"]:
                del sys.modules[name]
            os.chdir(tree)
            os.environ["PYTHONPATH"] = str(tree)
            sys.path.insert(0, str(tree))
            from edgevlm.cli import main

            done = []
            for arguments in commands:
                out, err, code = io.StringIO(), io.StringIO(), 0
                sys.argv = ["edgevlm", *map(str, arguments)]
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    try:
                        main()
                    except SystemExit as end:
                        code = end.code
                done.append([code, out.getvalue(), err.getvalue()])
            answers.write_text(json.dumps(done), "utf-8")

        pid, said = forked(act)
        with said:
            text = said.read()
        assert os.waitpid(pid, 0)[1] == 0, text
        return json.loads(answers.read_text("utf-8"))

    return run


@pytest.fixture(scope="session")
def optimum_cli():
    """Run `optimum-cli` with the command of a tree, whatever other edgevlm is installed."""

    def run(tree, *arguments):
        program = f"""
import importlib.machinery, importlib.util, sys
import optimum.commands
name = "optimum.commands.register"
spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
spec.submodule_search_locations = [{str(tree / "edgevlm" / "_optimum")!r}]
sys.modules[name] = importlib.util.module_from_spec(spec)
from optimum.commands.optimum_cli import main
main()
"""
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], cwd=tree,
            capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "80"},
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def command(start):
    """Run the `edgevlm` command as a process of its own to its end: exit code, stdout, stderr."""

    def run(*arguments, before=""):
        process = start(*arguments, before=before)
        out, err = process.communicate(timeout=180)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    return run
