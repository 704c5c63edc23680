"""The ComfyUI nodes, tested against its interface; ComfyUI itself is not needed."""

import importlib.util
import inspect
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_model

from SDMatte import MattePredictor
from SDMatte.errors import MissingCheckpointError, SDMatteError

FOLDER = Path(__file__).parents[1] / "comfyui"
SWITCHES = {"transparent": False, "tiles": False, "foreground_colors": True}
BOX = {"x0": 10, "y0": 5, "x1": 50, "y1": 40}
IDS = ["SDMatteLoadModel", "SDMatteBox", "SDMattePoints", "SDMatteMask", "SDMatteTrimap"]
WIDGETS = {"STRING": str, "INT": int, "FLOAT": float, "BOOLEAN": bool}
# Inputs and outputs of ComfyUI's own nodes in the example, from its documentation.
CORE = {
    "LoadImage": ({}, ["IMAGE", "MASK"]),
    "InvertMask": ({"mask": "MASK"}, ["MASK"]),
    "JoinImageWithAlpha": ({"image": "IMAGE", "alpha": "MASK"}, ["IMAGE"]),
    "MaskToImage": ({"mask": "MASK"}, ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE"}, []),
    "PreviewImage": ({"images": "IMAGE"}, []),
}


def import_nodes():
    """Import the folder as ComfyUI does: by its path, under a name that is not an identifier."""
    name = f"{FOLDER}.{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nodes():
    return import_nodes().NODE_CLASS_MAPPINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model(aux_input=None).save_pretrained(path, inference={"resolution": 64})
    return str(path)


@pytest.fixture(scope="module")
def model(nodes, folder):
    return execute(nodes["SDMatteLoadModel"], name=folder, dtype="auto")[0]


@pytest.fixture(scope="module")
def images():
    """Two images, float [2, 60, 80, 3] in [0, 1]."""
    return torch.rand(2, 60, 80, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def masks():
    found = torch.zeros(2, 60, 80)
    found[0, 10:40, 10:50] = 1
    found[1, 20:55, 30:70] = 1
    return found


def execute(node, **given):
    """Run a node as ComfyUI's executor does: in inference mode, with the widgets' defaults."""
    arguments = {}
    for name, (kind, *options) in node.INPUT_TYPES()["required"].items():
        default = kind[0] if isinstance(kind, list) else (options or [{}])[0].get("default")
        arguments[name] = given.pop(name, default)
    assert not given
    with torch.inference_mode():
        return getattr(node(), node.FUNCTION)(**arguments)


def test_the_contract(nodes):
    module = import_nodes()
    assert list(nodes) == IDS and module.NODE_DISPLAY_NAME_MAPPINGS.keys() == nodes.keys()
    for node in nodes.values():
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"}
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        has_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, (kind, *options) in inputs["required"].items():
            assert name in parameters or has_any
            if isinstance(kind, list):
                assert all(isinstance(choice, str) for choice in kind)
            elif kind in WIDGETS:
                assert type(options[0]["default"]) is WIDGETS[kind]
            else:
                assert kind.isupper() and not options
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert all(kind.isupper() for kind in node.RETURN_TYPES)
        assert node.CATEGORY and node.DESCRIPTION and callable(getattr(node(), node.FUNCTION))


@pytest.mark.parametrize("prompt", ["box", "points", "mask", "trimap"])
def test_mattes_equal_those_of_the_predictor(nodes, model, images, masks, folder, prompt):
    given = {"box": BOX, "points": {"points": "30 20\n(40, 30)"}, "mask": {"mask": masks[:1]}}
    given["trimap"] = {"trimap": torch.where(masks[:1] > 0, 0.5, 0)}
    name = f"SDMatte{prompt.capitalize()}"
    alpha, colors = execute(nodes[name], model=model, image=images, **given[prompt])
    predictor = MattePredictor.from_pretrained(folder, device=model.predictor.device)
    arguments = {
        "box": (10, 5, 50, 40),
        "points": [(30, 20), (40, 30)],
        "mask": masks[0].numpy(),
        "trimap": np.where(masks[0] > 0, 128, 0),
    }
    assert alpha.shape == (2, 60, 80) and colors.shape == (2, 60, 80, 3)
    for index in range(2):
        predictor.set_image(images[index].numpy())
        expected = predictor.predict(**{prompt: arguments[prompt]})
        torch.testing.assert_close(alpha[index], torch.from_numpy(expected.alpha))
        own = torch.from_numpy(expected.foreground) / 255
        torch.testing.assert_close(colors[index], own, rtol=0, atol=1.01 / 255)


def test_types_and_ranges(nodes, model, images):
    alpha, colors = execute(nodes["SDMatteBox"], model=model, image=images[:1], **BOX)
    for tensor in (alpha, colors):
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        assert 0 <= tensor.min() < tensor.max() <= 1
    beyond = images[:1] * 1.2 - 0.1  # as after resampling
    execute(nodes["SDMatteBox"], model=model, image=beyond, **BOX)


def test_switches(nodes, model, images):
    def run(**switches):
        given = {**BOX, **SWITCHES, **switches}
        return execute(nodes["SDMatteBox"], model=model, image=images[:1], **given)

    alpha, colors = run()
    assert not torch.equal(run(transparent=True)[0], alpha)
    assert not torch.equal(run(tiles=True)[0], alpha)
    plain = run(foreground_colors=False)[1]
    torch.testing.assert_close(plain, images[:1], rtol=0, atol=0.51 / 255)
    assert not torch.equal(colors, plain)


def test_batches_of_masks(nodes, model, images, masks):
    def run(image, mask):
        return execute(nodes["SDMatteMask"], model=model, image=image, mask=mask)[0]

    both = run(images, masks)
    for index in range(2):
        for mask in (masks[index], masks[None, index : index + 1]):  # as some nodes give it
            one = run(images[index : index + 1], mask)
            torch.testing.assert_close(one[0], both[index])
    shared = run(images, masks[:1])
    torch.testing.assert_close(shared[0], both[0])
    assert not torch.equal(shared[1], both[1])
    several = run(images[:1], masks)
    torch.testing.assert_close(several[0], both[0])
    assert several.shape == (2, 60, 80) and not torch.equal(several[0], several[1])


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("SDMatteBox", {}, r"\(0, 0, 512, 512\) does not fit the image"),
        ("SDMattePoints", {}, "Give at least one point"),
        ("SDMattePoints", {"points": "1 2 3"}, "points must be pairs"),
        ("SDMattePoints", {"points": "left"}, "Points must be x y, one per line"),
        ("SDMattePoints", {"points": "99 5"}, "is not in the image"),
        ("SDMatteMask", {"mask": torch.zeros(1, 64, 64)}, "paint over the object"),
        ("SDMatteMask", {"mask": torch.ones(1, 64, 64)}, "64 wide and 64 high, the image 80"),
        ("SDMatteMask", {"mask": torch.ones(3, 60, 80)}, "2 images and 3 masks"),
        ("SDMatteMask", {"mask": torch.ones(80)}, r"mask must be .* got torch.float32 \[80\]"),
        ("SDMatteTrimap", {"trimap": torch.zeros(1, 60, 80)}, "has only background"),
        ("SDMatteTrimap", {"trimap": torch.full((1, 60, 80), torch.nan)}, "must be finite"),
        ("SDMatteBox", {"image": torch.zeros(0, 60, 80, 3)}, r"images must be a batch .* \[0, 60"),
        ("SDMatteBox", {"image": torch.zeros(1, 60, 80, 3, dtype=torch.uint8)}, "torch.uint8"),
    ],
)
def test_errors_are_sentences(nodes, model, images, name, given, message):
    with pytest.raises(SDMatteError, match=message):
        execute(nodes[name], **{"model": model, "image": images, **given})


def test_missing_models(nodes):
    with pytest.raises(MissingCheckpointError, match="Model folder .*nowhere.* not found"):
        execute(nodes["SDMatteLoadModel"], name="/nowhere/at/all")


def test_a_model_is_loaded_once(nodes, model, folder):
    assert execute(nodes["SDMatteLoadModel"], name=f" {folder}")[0] is model
    other = execute(nodes["SDMatteLoadModel"], name=folder, resolution=128)[0]
    assert other is not model and other.predictor.resolution == 128


def test_memory_is_managed_by_comfyui(monkeypatch, folder, images):
    """A stand-in for the documented interface: it moves the weights, and takes them away."""
    moved = []

    class ModelPatcher:
        def __init__(self, model, load_device, offload_device, size=0):
            self.model, self.load_device, self.offload_device = model, load_device, offload_device
            self.model.device = offload_device  # set on the model by the real one, too

    def load_models_gpu(models, memory_required=0):
        for patcher in models:
            patcher.model.to(patcher.load_device)  # fails if a weight is on the meta device
            moved.append(patcher)

    comfy = types.ModuleType("comfy")
    comfy.model_management = types.ModuleType("comfy.model_management")
    comfy.model_management.get_torch_device = lambda: torch.device("cpu")
    comfy.model_management.unet_offload_device = lambda: torch.device("cpu")
    comfy.model_management.load_models_gpu = load_models_gpu
    comfy.model_patcher = types.ModuleType("comfy.model_patcher")
    comfy.model_patcher.ModelPatcher = ModelPatcher
    comfy.utils = types.ModuleType("comfy.utils")
    steps = []
    comfy.utils.ProgressBar = lambda total: types.SimpleNamespace(update=steps.append)
    for name in ("", ".model_management", ".model_patcher", ".utils"):
        module = comfy if not name else getattr(comfy, name[1:])
        monkeypatch.setitem(sys.modules, f"comfy{name}", module)
    nodes = import_nodes().NODE_CLASS_MAPPINGS
    model = execute(nodes["SDMatteLoadModel"], name=folder)[0]
    assert not moved
    execute(nodes["SDMatteBox"], model=model, image=images, **BOX)
    (patcher,) = moved
    weights = {id(p) for p in patcher.model.parameters()}
    parts = (model.predictor.model.unet, model.predictor.model.vae)
    assert weights == {id(p) for part in parts for p in part.parameters()}
    assert steps == [1, 1]


def test_the_example_workflow(nodes):
    (path,) = (FOLDER / "example_workflows").glob("*.json")
    workflow = json.loads(path.read_text())
    by_id = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["last_node_id"] == max(by_id)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    for node in by_id.values():
        if node["type"] in nodes:
            definition = nodes[node["type"]]
            required = {n: (k, *o) for n, (k, *o) in definition.INPUT_TYPES()["required"].items()}
            is_widget = {n: isinstance(v[0], list) or v[0] in WIDGETS for n, v in required.items()}
            inputs = {name: v[0] for name, v in required.items() if not is_widget[name]}
            outputs = list(definition.RETURN_TYPES)
            assert [o["name"] for o in node["outputs"]] == list(definition.RETURN_NAMES)
            kinds = [required[name][0] for name in required if is_widget[name]]
            for kind, value in zip(kinds, node["widgets_values"], strict=True):
                assert value in kind if isinstance(kind, list) else type(value) is WIDGETS[kind]
        else:
            inputs, outputs = CORE[node["type"]]
        assert {i["name"]: i["type"] for i in node["inputs"]} == inputs
        assert [o["type"] for o in node["outputs"]] == outputs
        assert all(i["link"] is not None for i in node["inputs"])
    for number, start, slot, end, socket, kind in workflow["links"]:
        output, given = by_id[start]["outputs"][slot], by_id[end]["inputs"][socket]
        assert number in output["links"] and given["link"] == number
        assert output["type"] == given["type"] == kind
        assert by_id[start]["order"] < by_id[end]["order"]


@pytest.mark.slow
def test_linking_the_folder_is_enough(tmp_path):
    """The package is found beside the linked folder, from anywhere."""
    (tmp_path / "SDMatte").symlink_to(FOLDER)
    code = (
        "import importlib.util, sys; path = sys.argv[1];"
        "spec = importlib.util.spec_from_file_location(path, path + '/__init__.py');"
        "module = importlib.util.module_from_spec(spec); sys.modules[path] = module;"
        "spec.loader.exec_module(module); print(len(module.NODE_CLASS_MAPPINGS))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "SDMatte")]
    done = subprocess.run(
        words, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "5", done.stderr
