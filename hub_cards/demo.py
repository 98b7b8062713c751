"""The demo: one page on which a picture is measured, turned in space, asked about and taken away as files."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import secrets
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from .._bundled import BUNDLED_MODEL
from ..conversation import Conversation
from ..inference import DepthVLM
from ..processing import DEPTH_PROMPT
from .demo_limits import Limits, LiveCaches, deadline
from .demo_uploads import camera_of, describe_camera, open_upload, photo_input, result_stem
from .demo_view import depth_view, view_of

DOWNLOADS = {
    "npy": "Depth, .npy",
    "png16": "Depth, 16-bit .png",
    "color": "Colours, .png",
    "ply": "Points, .ply",
    "glb": "Mesh, .glb",
    "json": "Camera, .json",
}
NANO_NOTE = (
    f"**{BUNDLED_MODEL}** is the toy that comes with the package: 5 M parameters, trained on rendered rooms and "
    "streets alone. Its metres and its answers hold for pictures like the samples, not for photographs, and it knows "
    'few kinds of questions ("What color is the crate?"). Trained checkpoints run in this same page: '
    "`depthvlm demo --model NAME`."
)
QUESTIONS = {
    "The method's own prompt": DEPTH_PROMPT,
    "What is in front of me?": "What is in front of me?",
    "How far is the nearest object?": "How far away is the nearest object?",
}


@dataclasses.dataclass(eq=False)
class Visit:
    """What is remembered of a visitor: the conversation about the last picture, and what its files are called."""

    conversation: Conversation
    stem: str


class Demo:
    """The steps of the page, each a function of what the visitor gives and of the visitor's own state.

    Args:
        depthvlm: the model.
        limits: what a visitor may ask for.
    """

    def __init__(self, depthvlm: DepthVLM, limits: Limits | None = None) -> None:
        self.depthvlm = depthvlm
        self.limits = limits or Limits()
        self.caches = LiveCaches(self.limits.live_caches)

    def look(self, photo: str | None, visit: Visit | None) -> tuple[Any, ...]:
        """A new picture: its focal length and where that comes from; the results of the last one go."""
        self.end(visit)
        no_camera = gr.Number(value=None, visible=False)
        cleared: tuple[Any, ...] = (
            None,
            None,
            None,
            [],
            *(gr.DownloadButton(value=None, interactive=False) for _ in DOWNLOADS),
        )
        if photo is None:
            return no_camera, "", *cleared
        try:
            camera = camera_of(photo, None, self.limits)
        except ValueError as error:
            return no_camera, _refused(error), *cleared
        return gr.Number(value=round(camera.fx, 1), visible=True), describe_camera(camera), *cleared

    def name_camera(self, photo: str | None, focal_length: float | None) -> str:
        """Where the focal length in the field comes from."""
        if photo is None:
            return ""
        try:
            return describe_camera(camera_of(photo, focal_length, self.limits))
        except ValueError as error:
            return _refused(error)

    def measure(self, photo: str | None, focal_length: float | None, visit: Visit | None) -> tuple[Any, ...]:
        """The depth of a picture: the visitor's new state, the view, the camera's line, an empty chat."""
        if photo is None:
            raise gr.Error("Give a picture first: upload, paste or take one, or choose a sample.")
        try:
            camera = camera_of(photo, focal_length, self.limits)
            image = open_upload(photo, self.limits)
            typed = focal_length if camera.source == "focal_length" else None
            with warnings.catch_warnings(), deadline(self.depthvlm.model, self.limits.request_seconds):
                warnings.simplefilter("ignore")  # the page says where the focal length comes from
                conversation = Conversation(image, self.depthvlm, focal_length=typed)
        except (ValueError, TimeoutError) as error:
            raise gr.Error(str(error)) from None
        self.end(visit)
        self.caches.used(conversation)
        new = Visit(conversation, result_stem(photo))
        return new, view_of(conversation.prediction), describe_camera(conversation.prediction.camera), []

    def write(self, visit: Visit | None) -> list[Any]:
        """The mesh to turn, and all files, in a folder whose name nobody can guess."""
        if visit is None:
            raise gr.Error("Measure a picture first.")
        folder = Path(get_upload_folder()) / secrets.token_urlsafe(24)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # depths beyond a 16-bit PNG: the record says how many
            files = visit.conversation.prediction.save(folder, visit.stem, list(DOWNLOADS))
        return [str(files["glb"]), *(gr.DownloadButton(value=str(path), interactive=True) for path in files.values())]

    def ask(self, visit: Visit | None, question: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
        """The field, emptied, and the chat: with the question at once, with the reply as it is made."""
        if visit is None:
            raise gr.Error("Measure a picture first: the questions are about it.")
        if len(question) > self.limits.question_characters:
            raise gr.Error(f"At most {self.limits.question_characters} characters in a question.")
        conversation = visit.conversation
        asked = [*conversation.messages, {"role": "user", "content": question}]
        yield "", asked
        if conversation.cached_tokens > self.limits.conversation_tokens:
            raise gr.Error("This conversation has become too long. Measure the picture again to start anew.")
        self.caches.used(conversation)  # before the reply: a visitor may leave in the middle of it
        seconds, reply = self.limits.request_seconds, ""
        pieces = conversation.stream(question, max_new_tokens=self.limits.new_tokens, max_time=0.8 * seconds)
        try:
            with deadline(self.depthvlm.model, seconds), contextlib.closing(pieces):
                for piece in pieces:
                    reply += piece
                    yield "", [*asked, {"role": "assistant", "content": reply}]
        except (ValueError, TimeoutError) as error:
            raise gr.Error(str(error)) from None
        yield "", conversation.messages

    def start_anew(self, visit: Visit | None) -> None:
        """Forget the questions: the chat was cleared."""
        if visit is not None:
            visit.conversation.clear()

    def end(self, visit: Visit | None) -> None:
        """Give back the memory of a visit that is over."""
        if visit is not None:
            self.caches.forget(visit.conversation)

    def page(self) -> gr.Blocks:
        """The page. Launch it with `launch`, which sets the limits that belong to the server."""
        with gr.Blocks(
            title="DepthVLM",
            analytics_enabled=False,
            delete_cache=(max(1, min(60, self.limits.kept_seconds)), self.limits.kept_seconds),
        ) as page:
            visit = gr.State(None, time_to_live=self.limits.kept_seconds, delete_callback=self.end)
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
                    gr.Examples([[sample] for sample in _samples()], photo, label="Samples", examples_per_page=8)
                    focal = gr.Number(label="Focal length in pixels of this picture", visible=False, elem_id="focal")
                    source = gr.HTML("", elem_id="source")
                    measure = gr.Button("Measure depth", variant="primary", elem_id="measure")
                with gr.Column(scale=7, min_width=420):
                    view = depth_view(elem_id="view")
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    chat = gr.Chatbot(label="Ask about the picture", height=330, elem_id="chat", buttons=[])
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
                    gr.Examples(
                        [[text] for text in QUESTIONS.values()],
                        question,
                        label="Questions to try",
                        example_labels=list(QUESTIONS),
                    )
                with gr.Column(scale=7, min_width=420):
                    mesh = gr.Model3D(
                        label="In space: drag to turn, scroll to zoom",
                        interactive=False,
                        height=440,
                        clear_color=(1.0, 1.0, 1.0, 1.0),
                        elem_id="mesh",
                    )
            with gr.Row():
                buttons = [
                    gr.DownloadButton(label, size="sm", min_width=130, interactive=False, elem_id=f"download-{name}")
                    for name, label in DOWNLOADS.items()
                ]

            light: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
            heavy: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
            photo.change(self.look, [photo, visit], [focal, source, visit, view, mesh, chat, *buttons], **light)
            chat.clear(self.start_anew, visit, None, **light)
            focal.input(self.name_camera, [photo, focal], source, **light)
            for trigger in (measure.click, focal.submit):
                trigger(
                    self.measure, [photo, focal, visit], [visit, view, source, chat], **heavy, show_progress_on=view
                ).success(self.write, visit, [mesh, *buttons], api_visibility="private", show_progress_on=mesh)
            for trigger in (send.click, question.submit):
                trigger(self.ask, [visit, question], [question, chat], **heavy, show_progress_on=chat)
        page.queue(max_size=self.limits.waiting, default_concurrency_limit=1, api_open=False)
        return page


def _refused(error: ValueError) -> str:
    return f"<span data-source='refused'><b>{html.escape(str(error))}</b></span>"


def _samples() -> list[str]:
    folder = Path(str(resources.files("depthvlm") / "assets"))
    return sorted(str(path) for path in folder.glob("*.jpg"))
