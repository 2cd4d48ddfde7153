"""The page of `diffews app`: paint one photo, get a folder of labels. On 127.0.0.1 alone.

Nothing is fetched from elsewhere and nothing is sent; a visitor sees what he has given himself.
"""

import functools
import importlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffews.errors import InputError
from diffews.evaluation.labels import FORMATS
from diffews.images.files import list_images
from diffews.images.masks import GATE
from diffews.images.photos import open_photo
from diffews.models.find import WeightDir
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import pick_device
from diffews.runtime.loading import open_pipeline
from diffews.tools.session import MARKED, OBJECT, Look, Session, read_mask_file, read_paint

if TYPE_CHECKING:
    from diffews.cli.tool_settings import AppConfig

HOST = "127.0.0.1"
LARGEST_FILE = "50mb"
PAUSE = 0.5  # seconds between two looks at the results while they come
TINY = """**These are the tiny weights that ship with the code: they know coloured shapes on simple
backgrounds, and nothing of photos.** Put real weights into `weight/` (README, "The real thing") and
start with `diffews app weight=weight/coco_fold0`."""
PAINT = "rgb(220, 50, 47)"


@dataclass(frozen=True)
class Model:
    """What segments: a pipeline, the side in pixels at which it works, and the first look."""

    pipe: DiffewsPipeline
    size: int
    look: Look


def import_gradio(folder: Path) -> Any:
    """Imports gradio, which keeps uploads in `folder` and tells nobody.

    Raises:
        InputError: where it is not installed.

    """
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False",
                   "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise InputError("the page needs gradio; pip install 'diffews[app]', or run "
                         "scripts/app.sh, which sets it up") from None


def serve(config: "AppConfig", source: WeightDir, is_tiny: bool) -> None:
    """Opens the weights and serves the page until it is interrupted."""
    with tempfile.TemporaryDirectory(prefix="diffews-app-") as place:
        root = Path(place)
        gr = import_gradio(root)
        pipe = open_pipeline(config, source, pick_device(config.device), config.threads)

        # the first look is `segment`'s: the recorded threshold, a gate where a head is trained
        is_trained = pipe.presence.kind not in (None, "cosine")
        look = Look(source.threshold(config.threshold), config.threshold_rule,
                    GATE if is_trained else 0.0)
        model = Model(pipe, config.image_size or pipe.config.image_size, look)
        folder = Path(config.folder) if config.folder else None
        page = build(gr, model, root, folder, is_tiny)

        # fonts of the visitor's own system: gradio's are fetched from elsewhere
        theme = gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        page.queue(default_concurrency_limit=1, max_size=50)
        try:
            page.launch(
                server_name=HOST, server_port=config.port, share=False, run_history=False,
                max_file_size=LARGEST_FILE, quiet=True, show_error=False, ssr_mode=False,
                footer_links=[], theme=theme, prevent_thread_lock=True, inbrowser=False)
        except OSError:
            raise InputError(
                f"port={config.port} is taken; give another, 1024 to 65535") from None
        print(f"http://{HOST}:{config.port}   (Ctrl-C ends it)", flush=True)
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)


def build(
    gr: Any, model: Model, root: Path, folder: Path | None, is_tiny: bool
) -> Any:
    """Lays the page out.

    Args:
        gr: gradio.
        model: what segments.
        root: folder for uploads and results.
        folder: of pictures on this machine that may be segmented; none by default.
        is_tiny: the weights are those that ship with the code.

    """
    def said(function: Callable[..., Any]) -> Callable[..., Any]:
        """What was wrong with the input is a message on the page, which goes on."""
        @functools.wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            try:
                return function(*values, **named)
            except InputError as error:
                raise gr.Error(str(error), duration=20, print_exception=False) from None
        return call

    def brush(radius: int) -> Any:
        return gr.Brush(radius, colors=[PAINT], color_mode="fixed")

    def seen(threshold: float, least: float) -> Look:
        return replace(model.look, threshold=threshold, least=least)

    def show_photo(file: str | None) -> Any:
        if file is None:
            return None
        picture = open_photo(file)[0]
        radius = max(1, min(picture.size) // 40)  # gradio's own is too broad for small pictures
        return gr.ImageEditor(
            {"background": picture, "layers": [], "composite": None}, brush=brush(radius),
            eraser=gr.Eraser(radius))

    def add(
        session: Session, file: str | None, painted: Any, kind: str, mask: str | None, name: str
    ) -> tuple[Any, ...]:
        if file is None:
            raise InputError("give a photo first, and paint the object in it")
        if mask is not None:
            mark = read_mask_file(Path(mask), Path(file))
        else:
            size = open_photo(file)[0].size
            mark = read_paint((painted or {}).get("layers") or [], kind, size)
        session.add(Path(file), mark, name)
        return session, _show_supports(session), None, None, None

    def drop(session: Session) -> tuple[Session, str]:
        session.supports = session.supports[:-1]
        return session, _show_supports(session)

    def find(
        session: Session, files: list[str] | None, whole_folder: bool, *look: float
    ) -> Iterator[Any]:
        session.folder = session.folder or root / uuid.uuid4().hex
        queries = [Path(file) for file in files or []]
        queries += list_images(folder) if folder is not None and whole_folder else []

        shown: list[tuple[str, str]] = []
        wrong: list[str] = []
        looked = 0.0
        try:
            for result in session.find(model.pipe, model.size, queries):
                if isinstance(result, str):
                    wrong.append(result)
                else:
                    shown.append((str(session.preview(result, seen(*look))), result.caption()))
                if time.monotonic() - looked > PAUSE:
                    looked = time.monotonic()
                    yield session, shown, _progress(len(shown), len(queries), wrong)
        except InputError as error:
            raise gr.Error(str(error), duration=20, print_exception=False) from None
        yield session, shown, _progress(len(shown), len(queries), wrong)

    def look_again(session: Session, *look: float) -> list[tuple[str, str]]:
        return [(str(session.preview(result, seen(*look))), result.caption())
                for result in session.results]

    def take(
        session: Session, threshold: float, least: float, event: gr.SelectData
    ) -> tuple[Session, str]:
        names = session.add_result(event.index, seen(threshold, least))
        gr.Info(f"one more support of {names}; press Find to use it")
        return session, _show_supports(session)

    def pack(session: Session, formats: list[str], *look: float) -> str:
        return str(session.pack(seen(*look), formats))

    with gr.Blocks(title="DiffewS", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        session = gr.State(Session(), time_to_live=86400, delete_callback=Session.forget_files)
        gr.Markdown("## Paint one photo, get the others\n" + (TINY if is_tiny else ""))
        with gr.Row():
            with gr.Column():
                photo = gr.File(label="1. A photo of it", elem_id="photo", height=90)
                editor = gr.ImageEditor(
                    label="2. Paint it", elem_id="editor", sources=(), transforms=(), layers=False,
                    format="jpeg", brush=brush(8))
                kind = gr.Radio(MARKED, value=MARKED[0], label="What is painted", elem_id="kind")
                mask = gr.File(label="... or its mask", elem_id="mask", height=90)
                name = gr.Textbox(OBJECT, label="Its name", elem_id="name")
                with gr.Row():
                    add_button = gr.Button("Add", variant="primary", elem_id="add")
                    drop_button = gr.Button("Drop the last", elem_id="drop")
                supports = gr.Markdown("no support yet", elem_id="supports")
            with gr.Column():
                queries = gr.File(
                    label="3. Photos to segment", file_count="multiple", elem_id="queries",
                    height=140)
                whole_folder = gr.Checkbox(
                    folder is not None, label=f"all photos of {folder}",
                    visible=folder is not None, elem_id="folder")
                find_button = gr.Button("Find", variant="primary", elem_id="find")
                threshold = gr.Slider(
                    0.01, 0.99, model.look.threshold, step=0.01, elem_id="threshold",
                    label="Threshold: share of a picture's highest score")
                least = gr.Slider(
                    0, 1, model.look.least, step=0.01, elem_id="least", label="Presence from which "
                    "a picture counts as holding it", visible=model.pipe.presence.kind is not None)
                status = gr.Markdown("", elem_id="status")
                gallery = gr.Gallery(
                    label="A click makes a result one more support", columns=4, height="auto",
                    allow_preview=False, elem_id="results")
                formats = gr.CheckboxGroup(
                    [word for word in FORMATS if word not in ("png", "scores")],
                    label="Labels beside the masks", elem_id="formats")
                pack_button = gr.Button("Make a zip", elem_id="pack")
                archive = gr.File(label="4. Masks and labels", elem_id="zip", interactive=False)

        sliders = [threshold, least]
        photo.upload(said(show_photo), photo, editor)
        photo.clear(lambda: None, None, editor)
        add_button.click(
            said(add), [session, photo, editor, kind, mask, name],
            [session, supports, photo, editor, mask])
        drop_button.click(drop, session, [session, supports])
        find_button.click(
            find, [session, queries, whole_folder, *sliders], [session, gallery, status])
        for slider in sliders:
            slider.release(said(look_again), [session, *sliders], gallery)
        gallery.select(said(take), [session, *sliders], [session, supports])
        pack_button.click(said(pack), [session, formats, *sliders], archive)
    return page


def _show_supports(session: Session) -> str:
    names = [support.name for support in session.supports]
    counts = [f"{names.count(name)} of {name}" for name in dict.fromkeys(names)]
    return "supports: " + ", ".join(counts) if counts else "no support yet"


def _progress(done: int, count: int, wrong: list[str]) -> str:
    lines = [f"{done} of {count} segmented"]
    return "\n\n".join(lines + [f"not read: {line}" for line in wrong])
