"""The text of an example in trained and untrained segments: replies are trained with their end, prompts are not."""

import base64
import copy
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template
from trl import maybe_convert_to_chatml
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import prepare_multimodal_messages

from ..processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT

# A piece of text, and True if its tokens are trained.
Segment = tuple[str, bool]

CONVERSATION_COLUMNS = ("messages", "prompt", "completion", "conversations")
TEXT_COLUMNS = (*CONVERSATION_COLUMNS, "tools", "chat_template_kwargs")

# The roles of LLaVA's conversations, and the image mark of LLaVA and many later data sets.
LLAVA_ROLES = {"human": "user", "gpt": "assistant"}
LLAVA_IMAGE = "<image>"

# Types of image parts in a message, and the keys that hold the picture.
IMAGE_TYPES = ("image", "image_url")
PAYLOADS = ("image", "image_url", "url", "path", "base64")


class ChatTemplateError(RuntimeError):
    """A chat template that cannot render any example, so that no example is at fault."""


@dataclass
class ReplyRenderer:
    """A writer of an example's text, in segments.

    Segments are tokenized one by one. At inference a reply starts after a tokenized prompt, so no token spans the
    boundary; the same holds here, which offsets into a text tokenized as a whole could not guarantee.

    Args:
        processor: [`DepthVLMProcessor`] with the chat template, the end-of-sequence token and the placeholders.
        chat_template: Chat template in place of the processor's.
        text_field: Column of plain text.
        completion_only: True to train only the completion of a prompt-completion example.
        assistant_only: True to train only the assistant's turns of `messages`.
    """

    processor: Any
    chat_template: str | None = None
    text_field: str = "text"
    completion_only: bool = True
    assistant_only: bool = True

    @cached_property
    def template(self) -> str:
        """The given chat template, or the processor's, or TRL's version of it with `{% generation %}` marks.

        Raises:
            ChatTemplateError: If there is none, or none with marks although they are needed.
        """
        template = self.processor.chat_template if self.chat_template is None else self.chat_template
        template = template["default"] if isinstance(template, dict) else template
        if template is None:
            raise ChatTemplateError("The processor has no chat template. Pass `chat_template`, or rows with `text`.")
        if has_generation_markers(template) or not self.assistant_only:
            return template
        processor = copy.copy(self.processor)
        processor.chat_template = template
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TRL tests templates with its own picture
                return get_training_chat_template(processor) or template
        except ValueError as error:
            raise ChatTemplateError(
                "The chat template does not mark what the assistant says, so its replies cannot be told from the "
                "prompts. Pass a `chat_template` with {% generation %} before and {% endgeneration %} after them."
            ) from error

    def segments(self, row: dict[str, Any], images: int) -> list[Segment]:
        """Return the text of an example in segments. An example without text gets the method's prompt and no reply.

        Args:
            row: Example without nulls; its messages hold placeholders, or nothing, for the images.
            images: Number of its images.

        Raises:
            ValueError: If it has no text and no image, or its text does not fit its images.
        """
        found = self._segments(row, images)
        found = [(text, trained) for text, trained in found if text]
        if not found:
            raise ValueError("it has no text.")
        text = "".join(text for text, _ in found)
        placeholders = text.count(self.processor.image_token)
        if placeholders != images:
            raise ValueError(
                f"it has {images} image(s), and its text {placeholders} placeholder(s) for one. Write messages without "
                f"placeholders, or one {self.processor.image_token} in plain text, for each image."
            )
        if self.processor.video_token in text:
            raise ValueError("its text has a placeholder for a video. Videos are not trained on.")
        return found

    def _segments(self, row: dict[str, Any], images: int) -> list[Segment]:
        if "messages" in row:
            return self._conversation(row, row["messages"], images)
        if "completion" in row and "prompt" not in row:
            raise ValueError("it has a `completion` without a `prompt`.")
        if "prompt" in row:
            return self._prompt_completion(row, images)
        if self.text_field in row:
            return [(row[self.text_field], True)]
        if images == 0:
            raise ValueError(
                f"it has neither text (`messages`, `prompt` and `completion`, or `{self.text_field}`) nor an image."
            )
        user = {"role": "user", "content": DEPTH_PROMPT}
        return self._conversation(row, [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}, user], images)

    def _conversation(self, row: dict[str, Any], messages: list[dict[str, Any]], images: int) -> list[Segment]:
        text, spans = self._render(row, prepare_multimodal_messages(messages, images=[*range(images)]))
        if not any(message["role"] == "assistant" for message in messages):
            return [(text, False)]
        if not self.assistant_only:
            return [(text, True)]
        segments, done = [], 0
        for start, end in spans:
            segments += [(text[done:start], False), (text[start:end], True)]
            done = end
        return [*segments, (text[done:], False)]

    def _prompt_completion(self, row: dict[str, Any], images: int) -> list[Segment]:
        prompt, completion = row["prompt"], row.get("completion")
        if completion is not None and isinstance(prompt, str) != isinstance(completion, str):
            raise ValueError("one of its `prompt` and `completion` is a string, the other one a conversation.")
        if isinstance(prompt, str):
            if marks_image(prompt):
                raise ValueError(
                    f"its prompt is plain text with {LLAVA_IMAGE}, which stands for an image in conversations alone. "
                    f"Write one {self.processor.image_token} for each image, or the prompt as a conversation."
                )
            if completion is None:
                return [(prompt, False)]
            eos = self.processor.tokenizer.eos_token or ""
            completion = completion if completion.endswith(eos) else completion + eos
            return [(prompt, not self.completion_only), (completion, True)]
        prompt = prepare_multimodal_messages(prompt, images=[*range(images)])
        if completion is None:
            return [(self._render(row, prompt)[0], False)]
        whole, _ = self._render(row, [*prompt, *prepare_multimodal_messages(completion)])
        opened = prompt[-1]["role"] == "assistant"
        start, _ = self._render(row, prompt, add_generation_prompt=not opened, continue_final_message=opened)
        # Templates may open a new reply differently from how they render an existing one.
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(start, whole, strict=False)))
        return [(whole[:shared], not self.completion_only), (whole[shared:], True)]

    def _render(
        self, row: dict[str, Any], messages: list[dict[str, Any]], **options: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of messages, and the start and end of each assistant turn in it, in characters."""
        options = {**self.processor.tokenizer.special_tokens_map, **(row.get("chat_template_kwargs") or {}), **options}
        marked = self.assistant_only and not options.get("continue_final_message", False)
        rendered: Any = render_jinja_template(
            [messages],
            tools=row.get("tools") or None,
            chat_template=self.template,
            return_assistant_tokens_mask=marked,
            **options,
        )
        texts, spans = rendered
        return texts[0], [(start, end) for start, end in spans[0]] if marked else []


def standard_conversations(row: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Bring the conversations of an example into one form, in a copy.

    `from`/`value` become `role`/`content`, LLaVA's names those of the chat template, and `<image>` in a message that is
    not the assistant's a placeholder; keys that a Parquet file filled with nulls are dropped; images inside messages
    are extracted.

    Args:
        row: Example without nulls at its top level.

    Returns:
        The example, and the images from its messages, in order.
    """
    row, images = dict(row), []
    for column in CONVERSATION_COLUMNS:
        if isinstance(row.get(column), list) and not row[column]:
            del row[column]
    found = [column for column in CONVERSATION_COLUMNS if isinstance(row.get(column), list)]
    for column in found:
        row[column] = [_without_nulls(message) for message in row[column]]
    renamed = {column for column in found if any("from" in message for message in row[column])}
    row = maybe_convert_to_chatml(row)
    for column in found:
        name = "messages" if column == "conversations" else column
        for message in row[name]:
            if column in renamed:
                message["role"] = LLAVA_ROLES.get(message["role"], message["role"])
            if message.get("role") != "assistant":  # in a reply the mark is ordinary text
                _mark_places(message)
            if isinstance(message.get("content"), list):
                images += _take_images(message["content"])
        if any(is_image(part) for message in row[name] for part in _parts(message)):
            for message in row[name]:  # TRL would put all images into the first plain-text message
                if isinstance(message.get("content"), str):
                    message["content"] = _parts(message)
    return row, images


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _mark_places(message: dict[str, Any]) -> None:
    """Replace each `<image>` in a message, with its newline, by an image placeholder."""
    if not marks_image(message.get("content")):
        return
    parts, message["content"] = _parts(message), []
    for part in parts:
        pieces = re.split(f"({LLAVA_IMAGE}\n?)", part["text"]) if marks_image([part]) else []
        message["content"] += [
            {"type": "image"} if piece.startswith(LLAVA_IMAGE) else {"type": "text", "text": piece}
            for piece in pieces
            if piece
        ] or [part]


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message.get("content") or []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def marks_image(content: Any) -> bool:
    """Return whether the content of a message has `<image>` marks, as in LLaVA's data and its successors."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return any(isinstance(text, str) and LLAVA_IMAGE in text for text in texts)


def is_image(part: Any) -> bool:
    """Return whether a part of a message is an image: by its type, or without a type by its key, as in Qwen's data."""
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    return kind in IMAGE_TYPES or (kind is None and "text" not in part and any(key in part for key in PAYLOADS))


def picture_of(part: dict[str, Any]) -> Any:
    """Return the picture of an image part (`{"type": "image", "image": ...}`, OpenAI's `image_url`), or None."""
    picture: Any = next((part[key] for key in PAYLOADS if part.get(key) is not None), None)
    if picture is not None and picture is part.get("base64"):
        return {"bytes": base64.b64decode(part["base64"]), "path": None}
    return picture["url"] if isinstance(picture, dict) and "url" in picture else picture


def _take_images(content: list[Any]) -> list[Any]:
    """Replace the pictures in a message's content by placeholders, and return them."""
    pictures = []
    for index, part in enumerate(content):
        if is_image(part):
            pictures += [picture for picture in [picture_of(part)] if picture is not None]
            content[index] = {"type": "image"}
    return pictures
