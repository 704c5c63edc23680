"""Layout and events of the demo page."""

import contextlib
import functools
import html
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from SDMatte.demo.session import VIEWS, Session, data_url, reduce
from SDMatte.errors import DataError, SDMatteError
from SDMatte.images.formats import IMAGE_EXTENSIONS
from SDMatte.inference.predictor import MattePredictor
from SDMatte.samples.photos import Photograph, real_photographs

logger = logging.getLogger(__name__)

_SAMPLES = ("coffee", "astronaut", "chelsea")
_TOOLS = {"box": ("box", "Box"), "point": ("points", "Points"), "mask": ("paint", "Paint")}
_THUMBNAIL = 96  # pixels
# Seconds between checks, and age in seconds at which abandoned files are removed.
_DELETE_CACHE = (60, 600)
_DOWNLOADS = {
    f"{label}, {bits} bits": (kind, bits)
    for label, kind in (("Cutout (RGBA)", "cutout"), ("Matte", "alpha"))
    for bits in (8, 16)
}
_PROGRESS = gr.Progress(track_tqdm=True)
_ACCEPT = ",".join(IMAGE_EXTENSIONS)

_THEME = gr.themes.Base(
    primary_hue="orange",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "sans-serif"],  # no web fonts: the page needs no internet
    font_mono=["ui-monospace", "monospace"],
)
_CSS = """
.gradio-container { max-width: 1280px !important; }
#head h1 { margin: 0; font-size: 26px; }
#head p { margin: 2px 0 0; color: var(--body-text-color-subdued); }
#downloads { align-items: stretch; }
"""
LAUNCH: dict[str, Any] = {
    "theme": _THEME,
    "css": _CSS,
    "prevent_thread_lock": True,
    "quiet": True,
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "mcp_server": False,
    "state_session_capacity": 64,  # visitors whose last outputs Gradio keeps in memory
}
"""Arguments of `gradio.Blocks.launch`."""


def build_page(
    models: Mapping[str, Callable[[], MattePredictor]],
    folder: Path,
    *,
    tiles: bool = False,
    max_pixels: float,
    max_upload: float,
) -> gr.Blocks:
    """Build the page.

    Args:
        models: Loaders of the models, by name on the page. The first model is loaded immediately,
            the others when first chosen. All visitors share them, one computation at a time.
        folder: Gradio's folder for uploads, in which each visitor gets a sub-folder.
        tiles: Whether the second pass over tiles is initially enabled.
        max_pixels: Largest image, in pixels.
        max_upload: Largest upload, in MB, for messages; the server enforces it.
    """
    samples = [photo for photo in real_photographs() if photo.name in _SAMPLES]
    sessions: dict[str, Session | None] = {}  # None: the visitor left
    name, *others = models
    load = functools.cache(lambda name: models[name]())
    predictor = load(name)

    def session_of(request: gr.Request) -> Session:
        key = str(request.session_hash)
        session = sessions.setdefault(key, Session(folder / secrets.token_hex(16)))
        if session is None:  # an event that waited in the queue must not write files
            raise DataError("This page lost its connection: reload it.")
        return session

    def leave(request: gr.Request) -> None:
        key = str(request.session_hash)
        session, sessions[key] = sessions.get(key), None
        if session is not None:
            session.close()

    def take(value: dict[str, Any], use: Callable[[Path, str], None]) -> None:
        """Use a sample, or an upload, which is then removed."""
        if "sample" in value:
            photo = samples[int(value["sample"])]
            return use(photo.path, photo.path.name)
        named = str(value.get("name", "The image"))[:200]
        if "path" not in value:
            raise DataError(f"{named} was not uploaded; the limit is {max_upload:g} MB per file.")
        path = Path(value["path"]).resolve()
        if path.parent.parent != folder:
            raise DataError(f"{named} is not an upload.")
        try:
            return use(path, named)
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another visitor uploaded the same image
                path.parent.rmdir()

    @_show_errors
    def open_image(value, view, color, model, resolution, request: gr.Request, progress=_PROGRESS):
        session = session_of(request)
        progress(0.1, desc="Reading the image")
        take(value, lambda path, named: session.open(path, named, max_pixels))
        progress(0.4, desc="Encoding the image")
        session.encode(load(model).at_resolution(resolution))
        return session.stage([], with_image=True), session.compare(view, color)

    @_show_errors
    def choose_model(model, progress=_PROGRESS):
        progress(0.1, desc=f"Loading {model}")
        chosen = load(model)
        return gr.update(choices=_resolutions(chosen), value=chosen.resolution)

    @_show_errors
    def predict(
        value,
        see_through,
        tiles,
        model,
        resolution,
        view,
        color,
        request: gr.Request,
        progress=_PROGRESS,
    ):
        session, gestures = session_of(request), (value or {}).get("gestures", [])
        progress(0.2, desc="Predicting the matte")
        session.predict(load(model).at_resolution(resolution), gestures, see_through, tiles)
        if session.steps[-1].result.alpha.max() < 0.5:
            gr.Warning("The matte is almost empty: mark the object more precisely.")
        progress(0.9, desc="Coloring the preview")
        stage = session.stage(session.shown()) | {"seen": gestures}
        return stage, session.compare(view, color)

    @_show_errors
    def undo(value, view, color, request: gr.Request):
        session = session_of(request)
        gestures = session.undo((value or {}).get("gestures", []))
        return session.stage(gestures), session.compare(view, color)

    @_show_errors
    def show(view, color, request: gr.Request):
        picked = [gr.update(visible=view == name) for name in ("Color", "Image")]
        return session_of(request).compare(view, color), *picked

    @_show_errors
    def set_background(value, view, color, request: gr.Request):
        session = session_of(request)
        take(value, lambda path, named: session.set_background(path, named, max_pixels))
        return session.compare(view, color)

    @_show_errors
    def save(chosen, request: gr.Request, progress=_PROGRESS):
        progress(0.3, desc="Writing the file")
        return str(session_of(request).write(*_DOWNLOADS[chosen]))

    with gr.Blocks(title="SDMatte", analytics_enabled=False, delete_cache=_DELETE_CACHE) as page:
        gr.HTML(
            "<h1>SDMatte</h1><p>Cut an object out of a photo: mark it with "
            f"{_describe(predictor.prompts)}, then press Matte.</p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(min_width=420):
                stage = _stage(predictor.prompts, samples, max_upload)
                with gr.Row(equal_height=True):
                    see_through = gr.Checkbox(label="Transparent object", min_width=120)
                    tile_box = gr.Checkbox(tiles, label="Refine with tiles", min_width=120)
                    model = gr.Dropdown(
                        [name, *others], label="Model", min_width=130, interactive=bool(others)
                    )
                    resolution = gr.Dropdown(
                        _resolutions(predictor),
                        value=predictor.resolution,
                        label="Resolution",
                        min_width=100,
                    )
                button = gr.Button("Matte", variant="primary", elem_id="matte")
            with gr.Column(min_width=420):
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    interactive=False,
                    height=460,
                    buttons=["fullscreen"],
                    elem_id="result",
                )
                with gr.Row(equal_height=True):
                    view = gr.Radio(VIEWS, value=VIEWS[0], label="Show on", scale=4)
                    color = gr.ColorPicker("#00b140", label="Color", visible=False, min_width=90)
                    image = _background_button()
                with gr.Row(elem_id="downloads"):
                    chosen = gr.Dropdown(list(_DOWNLOADS), label="PNG at full size", scale=3)
                    download = gr.Button("Download", elem_id="save", min_width=120)
                file = gr.DownloadButton(elem_id="file", visible="hidden")

        # All events of this group wait for each other: one computation at a time.
        heavy: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        common: dict[str, Any] = {"show_progress_on": slider, "api_visibility": "private"}
        both, looks = [stage, slider], [view, color]
        stage.upload(open_image, [stage, *looks, model, resolution], both, **heavy, **common)
        model.input(choose_model, model, resolution, **heavy, **common)
        prompt = [stage, see_through, tile_box, model, resolution, *looks]
        button.click(predict, prompt, both, **heavy, **common)
        stage.undo(undo, [stage, *looks], both, **common)
        for changed in looks:
            changed.change(show, looks, [slider, color, image], **common)
        image.upload(set_background, [image, *looks], slider, **common)
        common["show_progress_on"] = chosen
        download.click(save, chosen, file, **heavy, **common).success(
            None, js="() => document.querySelector('a#file, #file a, #file').click()"
        )
        page.unload(leave)
    return page.queue(default_concurrency_limit=1, max_size=64, api_open=False)


def _show_errors(function: Callable) -> Callable:
    """Show the messages of expected errors on the page; log all others."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return function(*args)
        except SDMatteError as error:
            message = str(error)
        except Exception:
            logger.exception("An event of the page failed.")
            message = "An internal error occurred; the server's log has the details."
        raise gr.Error(html.escape(message, quote=False), print_exception=False)

    return run


def _resolutions(predictor: MattePredictor) -> list[int]:
    sizes = (predictor.resolution * k // 2 for k in (1, 2, 3, 4))
    return [n for n in sizes if n % predictor.model.size_divisor == 0]


def _describe(prompts: tuple[str, ...]) -> str:
    words = {"box": "a box", "point": "points", "mask": "a rough mask"}
    *most, last = [words[name] for name in words if name in prompts]
    return f"{', '.join(most)} or {last}" if most else last


def _stage(prompts: tuple[str, ...], samples: list[Photograph], max_upload: float) -> gr.HTML:
    """Return the component for drawing prompts; ``stage.js`` describes its value."""
    tools = [_TOOLS[name] for name in _TOOLS if name in prompts]
    if "mask" in prompts:
        tools.append(("remove", "Remove"))
    buttons = "".join(f'<button data-tool="{tool}">{text}</button>' for tool, text in tools)
    thumbnails = "".join(
        f'<button data-sample="{i}" title="{photo.name}"><img alt="{photo.name}" '
        f'src="{data_url(reduce(photo.load(), _THUMBNAIL), "JPEG")}"></button>'
        for i, photo in enumerate(samples)
    )
    here = Path(__file__).parent
    return gr.HTML(
        html_template=f"""<div class="stage">
<div class="tools">{buttons}<label class="brush" hidden>Brush
<input type="range" min="0.5" max="15" step="0.5" value="4"></label><span class="space"></span>
<button data-do="undo">Undo</button><button data-do="open">New image</button></div>
<canvas></canvas>
<label class="drop"><b>Drop a photo here</b><span>or click to choose one, up to
{max_upload:g} MB</span><input type="file" accept="{_ACCEPT}"></label>
<div class="samples"><span>Samples</span>{thumbnails}</div></div>""",
        css_template=(here / "stage.css").read_text(),
        js_on_load=(here / "stage.js").read_text(),
        apply_default_css=False,
        elem_id="stage",
    )


def _background_button() -> gr.HTML:
    """Return a button that uploads the background of the view "Image"."""
    return gr.HTML(
        html_template=f'<label><span>Choose image</span><input type="file" accept="{_ACCEPT}">'
        f"</label>",
        css_template="input { display: none; } label { display: block; padding: 8px 14px; "
        "border: 1px solid var(--border-color-primary); border-radius: 8px; cursor: pointer; }",
        js_on_load="""const input = element.querySelector('input');
input.addEventListener('change', async () => {
  const [file] = input.files, {name} = file, own = `${Math.random()}`;
  try { props.value = {path: (await upload(new File([file], own, {type: file.type}))).path, name}; }
  catch (error) { props.value = {name}; }
  trigger('upload');
  input.value = '';
});""",
        apply_default_css=False,
        elem_id="background",
        visible=False,
    )
