"""The demo: one page on which a picture is measured, turned in space, asked about and downloaded as files."""

from __future__ import annotations

import contextlib
import ctypes
import html
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData

from ...checkpoint import BUNDLED_MODEL
from ...conversation import Conversation
from ...inference import DepthPredictor
from ...modeling_depthvlm import DepthVLMForConditionalGeneration
from ...prediction import Prediction, output_paths
from ...processing import DEPTH_PROMPT, Camera
from ...processing.images_depthvlm import upright_image
from .view import depth_view, view_of
from .visitors import Files, Limits, Visit, Visits, camera_of, open_upload, result_stem

DOWNLOADS = {
    "npy": "Depth, .npy",
    "png16": "Depth, 16-bit .png",
    "color": "Colours, .png",
    "ply": "Points, .ply",
    "glb": "Mesh, .glb",
    "json": "Camera, .json",
}
PUBLISHED_MODEL = "JonnyYu828/DepthVLM-4B"
NANO_NOTE = (
    f"**{BUNDLED_MODEL}** is the toy that comes with the package: 5 M parameters, trained on rendered rooms and "
    "streets alone. Its metres and its answers hold for pictures like the samples, not for photographs, and it knows "
    'few kinds of questions ("What color is the crate?").\n\n'
    "For photographs, run this page with the checkpoint that the paper's authors trained and published: "
    f"`depthvlm demo --model {PUBLISHED_MODEL}`. It downloads 9 GB once and needs that much memory plus about 1 GB: a "
    "GPU of 12 GB, or a computer with 16 GB (computed, not measured). Its model card says Apache-2.0; most of its "
    "training data are for research only."
)
MODEL_QUEUE = "model"  # the steps that wait for the model
QUESTIONS = {
    "The method's own prompt": DEPTH_PROMPT,
    "What is in front of me?": "What is in front of me?",
    "How far is the nearest object?": "How far away is the nearest object?",
}


class Demo:
    """Steps of the page, each a function of what the visitor gives and of the visitor's own state.

    Args:
        depthvlm: The model.
        files: The uploads and results.
        limits: Limits of a visitor's requests.
    """

    def __init__(self, depthvlm: DepthPredictor, files: Files, limits: Limits | None = None) -> None:
        self.depthvlm = depthvlm
        self.files = files
        self.limits = limits or Limits()
        # Always the same threads: what one frees, the next picture takes again. Gradio's many would each keep theirs.
        self._at_model, self._at_files = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.visits = Visits(self.limits)
        self.samples = [files.sample(path) for path in _samples()]

    def choose(self, number: int) -> str:
        """Return the path of a sample."""
        if not 0 <= number < len(self.samples):
            raise _error(f"There are samples 0 to {len(self.samples) - 1}, and no sample {number}.")
        return self.samples[number]

    def look(self, photo: str | None, visit: Visit | None) -> tuple[Any, ...]:
        """Show a new picture's focal length and its source; clear the last results."""
        self.end(visit)
        no_camera = gr.Number(value=None, visible=False)
        cleared: tuple[Any, ...] = (None, None, None, [], _links({}))
        if photo is None:
            return no_camera, "", *cleared
        try:
            camera = camera_of(photo, None, self.limits)
        except ValueError as error:
            return no_camera, _refused(error), *cleared
        return gr.Number(value=round(camera.fx, 1), visible=True), describe_camera(camera), *cleared

    def name_camera(self, photo: str | None, focal_length: float | None) -> str:
        """Return a line that says where the focal length in the field comes from."""
        if photo is None:
            return ""
        try:
            return describe_camera(camera_of(photo, focal_length, self.limits))
        except ValueError as error:
            return _refused(error)

    def measure(self, photo: str | None, focal_length: float | None, visit: Visit | None) -> tuple[Any, ...]:
        """Measure a picture; return the visitor's new state, the view, the camera's line and an empty chat."""
        if photo is None:
            raise _error("Give a picture first: upload, paste or take one, or choose a sample.")
        try:
            new, view = self._at_model.submit(self._measure, photo, focal_length).result()
        except (ValueError, TimeoutError) as error:
            raise _error(error) from None
        self.end(visit)
        self.visits.used(new)
        return new, view, describe_camera(new.camera), []

    def _measure(self, photo: str, focal_length: float | None) -> tuple[Visit, dict[str, Any]]:
        camera = camera_of(photo, focal_length, self.limits)
        typed = focal_length if camera.source == "focal_length" else None
        conversation = self._see(photo, typed)
        prediction, results = conversation.prediction, self.files.results()
        assert isinstance(prediction.camera, Camera)  # no lens is given here
        new = Visit(photo, typed, prediction.camera, results, result_stem(photo), conversation=conversation)
        prediction.save(results, new.stem, ["npy"])  # the other files are made from it
        return new, view_of(prediction, results / "view")

    def write(self, visit: Visit | None) -> tuple[str, str]:
        """Write the mesh to turn; return its path and the links to all files, in a folder nobody can guess."""
        if visit is None or visit not in self.visits:
            raise _error("Measure a picture first.")
        try:
            self._at_files.submit(self._write, visit, "glb").result()
        except ValueError as error:
            raise _error(error) from None
        files = output_paths(visit.results, visit.stem, list(DOWNLOADS))
        return str(files["glb"]), _links(files)

    def make(self, path: str) -> bool:
        """Make a file of a visit when it is asked for; return whether it is there."""
        place = Path(os.path.abspath(path))
        visit = next((visit for visit in self.visits if visit.results == place.parent), None)
        files = {} if visit is None else output_paths(visit.results, visit.stem, list(DOWNLOADS))
        kind = next((name for name, file in files.items() if file == place), None)
        if visit is not None and kind is not None:
            visit.seen = time.monotonic()
            with contextlib.suppress(ValueError):  # the upload is not kept any more
                self._at_files.submit(self._write, visit, kind).result()
        return self.files.serves(path)

    def _write(self, visit: Visit, kind: str) -> None:
        if output_paths(visit.results, visit.stem, [kind])[kind].exists():
            return
        depth = np.load(visit.results / f"{visit.stem}_depth.npy", allow_pickle=False)
        image = upright_image(open_upload(visit.photo, self.limits))[0]
        prediction = Prediction(depth, visit.camera, image, model=self.depthvlm.name)
        formats = list(DOWNLOADS) if kind == "json" else [kind]  # the record tells of the other files
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # depths beyond a 16-bit PNG: the record says how many
            prediction.save(visit.results, visit.stem, formats, overwrite=True)

    def ask(self, visit: Visit | None, question: str | None) -> Iterator[tuple[str, list[dict[str, str]]]]:
        """Empty the field and show the chat: with the question at once, with the reply as it is made."""
        if visit is None or visit not in self.visits:
            raise _error("Measure a picture first: the questions are about it.")
        question = question or ""
        if len(question) > self.limits.question_characters:
            raise _error(f"At most {self.limits.question_characters} characters in a question.")
        messages = visit.conversation.messages if visit.conversation else visit.messages
        asked = [*messages, {"role": "user", "content": question}]
        yield "", _shown(asked)
        seconds, reply = self.limits.request_seconds, ""
        try:
            if visit.conversation is None:
                visit.conversation = self._see(visit.photo, visit.focal_length)
                visit.conversation.messages = visit.messages
            conversation = visit.conversation
            if conversation.cached_tokens > self.limits.conversation_tokens:
                raise ValueError("This conversation has become too long. Measure the picture again to start anew.")
            self.visits.used(visit)  # before the reply: a visitor may leave in the middle of it
            pieces = conversation.stream(question, max_new_tokens=self.limits.new_tokens, max_time=0.8 * seconds)
            with deadline(self.depthvlm.model, seconds), contextlib.closing(pieces):
                for piece in pieces:
                    reply += piece
                    yield "", _shown([*asked, {"role": "assistant", "content": reply}])
        except (ValueError, TimeoutError) as error:
            raise _error(error) from None
        yield "", _shown(conversation.messages)

    def start_anew(self, visit: Visit | None) -> None:
        """Forget the questions: the chat was cleared."""
        if visit is not None:
            visit.messages = []
            if visit.conversation is not None:
                visit.conversation.clear()

    def end(self, visit: Visit | None) -> None:
        """Give back the memory and the files of a visit that is over."""
        if visit is not None:
            self.visits.end(visit)

    def sweep(self) -> None:
        """Remove expired visits and files."""
        self.visits.sweep()
        self.files.sweep()
        if sys.platform == "linux":
            with contextlib.suppress(AttributeError):  # a C library that is not glibc, which keeps what threads freed
                ctypes.CDLL(None).malloc_trim(0)

    def _see(self, photo: str, focal_length: float | None) -> Conversation:
        """Run the model on a picture, with the time limit of a request."""
        image = open_upload(photo, self.limits)
        with warnings.catch_warnings(), deadline(self.depthvlm.model, self.limits.request_seconds):
            warnings.simplefilter("ignore")  # the page says where the focal length comes from
            return Conversation(image, self.depthvlm, focal_length=focal_length)

    def page(self) -> gr.Blocks:
        """Return the page; `serve` sets the limits that belong to the server."""
        with gr.Blocks(title="DepthVLM", analytics_enabled=False) as page:
            # No callback of this object here: Gradio copies what a page is made of at each view, the model with it.
            visit = gr.State(None, time_to_live=self.limits.kept_seconds)
            gr.Markdown("# DepthVLM\nMetres and words from one picture.", elem_id="title")
            if self.depthvlm.name == BUNDLED_MODEL:
                gr.Markdown(NANO_NOTE, elem_id="note")
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    photo = photo_input(
                        label="Picture",
                        sources=["upload", "webcam", "clipboard"],
                        webcam_options=gr.WebcamOptions(mirror=False),
                        height=260,
                        buttons=[],
                        elem_id="photo",
                    )
                    samples = gr.Dataset(
                        components=[photo],
                        samples=[[sample] for sample in self.samples],
                        type="index",
                        label="Samples",
                        samples_per_page=8,
                    )
                    focal = gr.Number(label="Focal length in pixels of this picture", visible=False, elem_id="focal")
                    source = gr.HTML("", elem_id="source")
                    measure = gr.Button("Measure depth", variant="primary", elem_id="measure")
                with gr.Column(scale=7, min_width=420):
                    view = depth_view(elem_id="view")
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    chat = gr.Chatbot(
                        label="Ask about the picture", height=330, elem_id="chat", buttons=[], render_markdown=False
                    )
                    with gr.Row():
                        question = gr.Textbox(
                            placeholder="A question",
                            show_label=False,
                            container=False,
                            scale=5,
                            min_width=120,
                            max_length=self.limits.question_characters,
                            elem_id="question",
                        )
                        send = gr.Button("Ask", scale=1, min_width=70, elem_id="send")
                    questions = gr.Dataset(
                        components=[question],
                        samples=[[text] for text in QUESTIONS.values()],
                        type="index",
                        label="Questions to try",
                        sample_labels=list(QUESTIONS),
                    )
                with gr.Column(scale=7, min_width=420):
                    mesh = gr.Model3D(
                        label="In space: drag to turn, scroll to zoom",
                        interactive=False,
                        height=440,
                        clear_color=(1.0, 1.0, 1.0, 1.0),
                        elem_id="mesh",
                    )
            downloads = gr.HTML(_links({}), elem_id="downloads", padding=False)

            light: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
            heavy: dict[str, Any] = {"api_visibility": "private", "concurrency_id": MODEL_QUEUE, "concurrency_limit": 1}
            files: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "files", "concurrency_limit": 1}
            # Our own steps rather than `gr.Examples`, which replaces the components that it fills.
            samples.click(self.choose, samples, photo, **light)
            questions.click(choose_question, questions, question, **light)
            photo.change(self.look, [photo, visit], [focal, source, visit, view, mesh, chat, downloads], **light)
            chat.clear(self.start_anew, visit, None, **light)
            focal.input(self.name_camera, [photo, focal], source, **light)
            for trigger in (measure.click, focal.submit):
                trigger(
                    self.measure, [photo, focal, visit], [visit, view, source, chat], **heavy, show_progress_on=view
                ).success(self.write, visit, [mesh, downloads], **files, show_progress_on=mesh)
            for trigger in (send.click, question.submit):
                trigger(self.ask, [visit, question], [question, chat], **heavy, show_progress_on=chat)
        page.queue(default_concurrency_limit=1, api_open=False)  # its length is limited by the guard
        return page


@contextmanager
def deadline(model: DepthVLMForConditionalGeneration, seconds: float) -> Iterator[None]:
    """Stop the model after so many seconds, between two of its layers.

    Raises:
        TimeoutError: The time is over.
    """
    end = time.monotonic() + seconds

    def check(*_: Any) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"This took longer than {seconds:g} seconds and was broken off. Try a smaller picture.")

    layers = [*model.model.visual.blocks, *model.model.language_model.layers, model.depth_head]
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(check).remove)
        yield


def photo_input(**kwargs: Any) -> gr.Image:
    """Return Gradio's image component, but one that passes on the uploaded file unopened, with its EXIF data."""
    component = gr.Image(type="filepath", image_mode=None, **kwargs)

    def path_of(payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path

    # On the object: Gradio writes a stub file next to the source of every subclass of a component.
    vars(component).update(preprocess=path_of)
    return component


def describe_camera(camera: Camera) -> str:
    """Return a line of the page that says where the focal length comes from."""
    sources = {
        "exif": "from the picture's EXIF data",
        "focal_length": "typed",
        "predicted": "estimated by the model from the picture",
        "assumed": "<b>assumed</b>, since the picture does not say: if it is wrong, all distances are wrong by one "
        "factor. Type the right one",
    }
    text = f"{sources[camera.source]}; {camera.fov:.0f}° across {camera.width} pixels"
    if camera.fov_spread is not None:
        text += f", give or take {camera.fov_spread:.0f}°"
    if camera.fov > 150:
        text += ". <b>No such lens exists</b>: the focal length must be in pixels, not in millimetres"
    return f"<span data-source='{camera.source}'>Focal length: {text}.</span>"


def choose_question(number: int) -> str:
    """Return one of the questions to try."""
    questions = list(QUESTIONS.values())
    if not 0 <= number < len(questions):
        raise _error(f"There are questions 0 to {len(questions) - 1}, and no question {number}.")
    return questions[number]


def _links(files: Mapping[str, Path]) -> str:
    """Return the downloads as HTML: a link for each file, or buttons that do nothing before there are files."""
    links = []
    for kind, label in DOWNLOADS.items():
        place = f'id="download-{kind}"'
        if path := files.get(kind):  # relative to the page, which may lie below a proxy's address
            links.append(f'<a {place} href="gradio_api/file={quote(str(path))}" download="{path.name}">{label}</a>')
        else:
            links.append(f"<button {place} disabled>{label}</button>")
    return "".join(links)


def _shown(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return messages as the chat shows them: letters, whatever markup they may look like."""
    return [turn | {"content": html.escape(turn["content"], quote=False)} for turn in messages]


def _error(problem: Exception | str) -> gr.Error:
    """Return an error that the page shows as letters; Gradio would show markup, and print a traceback."""
    return gr.Error(html.escape(str(problem), quote=False), print_exception=False)


def _refused(error: ValueError) -> str:
    return f"<span data-source='refused'><b>{html.escape(str(error))}</b></span>"


def _samples() -> list[str]:
    folder = Path(str(resources.files("depthvlm") / "assets"))
    return sorted(str(path) for path in folder.glob("*.jpg"))
