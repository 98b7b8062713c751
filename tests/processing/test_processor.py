"""The processor: text and images together, what it returns, and that it can be saved and loaded anywhere."""

import copy
import json
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from depthvlm.benchmark.synthetic.scenes import render_scene
from depthvlm.processing import (
    DEPTH_PROMPT,
    DEPTH_SYSTEM_PROMPT,
    AssumedCameraWarning,
    Camera,
    DepthVLMBatchFeature,
    DepthVLMImageProcessor,
    DepthVLMImageProcessorPil,
    DepthVLMProcessor,
    register_auto_classes,
)
from PIL import Image
from toy_checkpoint import save_foreign_checkpoint
from toy_images import exif_of
from toy_tokenizer import build_toy_tokenizer
from transformers import AutoImageProcessor, AutoProcessor, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import is_torchvision_available

from depthvlm.convert import convert_checkpoint

MATRIX = [[200.0, 0.0, 60.0], [0.0, 200.0, 50.0], [0.0, 0.0, 1.0]]
REMOTE_FILES = sorted(path.name for path in (REPOSITORY / "processing").glob("*_depthvlm.py"))


@pytest.fixture(scope="module")
def processor() -> DepthVLMProcessor:
    return DepthVLMProcessor(DepthVLMImageProcessor(min_pixels=1024, max_pixels=65536), build_toy_tokenizer())


def picture(height: int = 96, width: int = 128, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(*images, text: str = DEPTH_PROMPT) -> list[dict]:
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}, {"role": "user", "content": content}]


OPTIONS = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}


def apply(processor, messages, **kwargs):
    return processor.apply_chat_template(messages, **OPTIONS, processor_kwargs=kwargs)


class TestTextAndImages:
    def test_a_prompt_as_qwen3_vl_writes_it(self, processor):
        text = processor.apply_chat_template(conversation(picture()), add_generation_prompt=True)
        assert text == (
            f"<|im_start|>system\n{DEPTH_SYSTEM_PROMPT}<|im_end|>\n"
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{DEPTH_PROMPT}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_one_token_for_every_cell(self, processor):
        inputs = apply(processor, conversation(picture()), focal_length=1000.0)
        image_token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert (inputs["input_ids"] == image_token).sum() == 3 * 4
        assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == image_token)
        of_text, of_images = {"input_ids", "attention_mask", "mm_token_type_ids"}, {"pixel_values", "image_grid_thw"}
        assert set(inputs) == of_text | of_images | {"focal_scale", "cameras"}
        assert set(inputs) <= set(processor.model_input_names)

    def test_the_keywords_reach_the_image_processor_either_way(self, processor):
        depth = np.full((96, 128), 1500, np.uint16)
        given = {"intrinsics": [MATRIX], "depth_maps": [depth], "depth_scale": 1000}
        chat = apply(processor, conversation(picture()), **given)
        text = processor.apply_chat_template(conversation(picture()), add_generation_prompt=True)
        call = processor(images=picture(), text=text, return_tensors="pt", **given)
        for inputs in (chat, call):
            assert isinstance(inputs, DepthVLMBatchFeature)
            assert Camera.from_row(inputs["cameras"][0]) == Camera(200.0, 200.0, 60.0, 50.0, 128, 96, "intrinsics")
            assert torch.equal(inputs["depth_labels"][0], torch.full((96, 128), 1.5))
        for name in ("focal_length", "fov"):
            assert apply(processor, conversation(picture()), **{name: 64.0})["cameras"][0, -1] == 1 + (name == "fov")

    def test_rows_with_no_one_or_several_images_of_any_size(self, processor):
        images = [picture(), picture(64, 160, seed=1), picture(160, 96, seed=2)]
        rows = [conversation(text="Just words."), conversation(*images[:2]), conversation(images[2])]
        depth = np.ones((64, 160), np.float32)
        cameras = {"focal_length": [1000.0, None, 900.0], "fov": 90.0}
        inputs = apply(processor, rows, padding=True, depth_maps=[None, depth, None], **cameras)
        assert inputs["input_ids"].shape[0] == 3
        assert [int(row[-1]) for row in inputs["cameras"]] == [1, 2, 1]
        assert [label is None for label in inputs["depth_labels"]] == [True, False, True]
        # Each image as if it came alone; 90 degrees across 160 pixels are a focal length of 80.
        patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
        for index, focal_length in enumerate([1000.0, 80.0, 900.0]):
            alone = processor.image_processor(images[index], focal_length=focal_length, return_tensors="pt")
            assert torch.equal(alone["image_grid_thw"][0], inputs["image_grid_thw"][index])
            assert torch.equal(alone["focal_scale"][0], inputs["focal_scale"][index])
            torch.testing.assert_close(patches[index], alone["pixel_values"])

    def test_a_batch_without_images(self, processor):
        inputs = apply(processor, [conversation(text="One."), conversation(text="Two.")], padding=True)
        assert "pixel_values" not in inputs
        text = ["a", "b"]
        assert "pixel_values" not in processor(images=[[], []], text=text, return_tensors="pt", focal_length=[])
        assert "pixel_values" not in processor(text=text, depth_maps=[], return_tensors="pt")

    def test_exif_of_files_in_a_conversation(self, processor, tmp_path):
        picture().save(tmp_path / "photo.jpg", exif=exif_of(FocalLengthIn35mmFilm=28))
        for key in ("path", "url", "image"):
            message = [{"role": "user", "content": [{"type": "image", key: str(tmp_path / "photo.jpg")}]}]
            assert Camera.from_row(apply(processor, message)["cameras"][0]).source == "exif"

    def test_replies_can_be_masked(self, processor):
        messages = [*conversation(picture()), {"role": "assistant", "content": [{"type": "text", "text": "OK."}]}]
        options = OPTIONS | {"add_generation_prompt": False, "return_assistant_tokens_mask": True}
        inputs = processor.apply_chat_template(messages, **options, processor_kwargs={"focal_length": 500.0})
        mask = torch.as_tensor(inputs["assistant_masks"]).bool()
        assert processor.decode(inputs["input_ids"][mask]) == "OK.<|im_end|>\n"

    def test_token_counts_are_known_beforehand(self, processor):
        counted = processor._get_num_multimodal_tokens(image_sizes=[(96, 128)], focal_length=500.0)
        inputs = apply(processor, conversation(picture()), focal_length=500.0)
        assert counted["num_image_patches"] == [len(inputs["pixel_values"])]


class TestBadInput:
    def test_cameras_and_depth_without_an_image_and_a_processor_for_other_models(self, processor):
        with pytest.raises(ValueError, match="`focal_length`, `depth_maps` was passed, but no image"):
            processor(text="a", focal_length=500.0, depth_maps=[np.ones((96, 128))])
        with pytest.raises(TypeError, match="needs a DepthVLMImageProcessor, got Qwen2VLImageProcessorPil"):
            DepthVLMProcessor(Qwen2VLImageProcessorPil(), build_toy_tokenizer())

    def test_videos_need_torchvision(self, processor):
        video = np.zeros((4, 64, 64, 3), np.uint8)
        message = [{"role": "user", "content": [{"type": "video", "video": video}]}]
        if is_torchvision_available():
            inputs = apply(processor, message, do_sample_frames=False)
            assert inputs["video_grid_thw"][0, 0] == 2
            assert set(inputs) <= set(processor.model_input_names)
            return
        with pytest.raises(ImportError, match=r"depthvlm\[video\]"):
            apply(processor, message)
        with pytest.raises(ImportError, match=r"depthvlm\[video\]"):
            processor(text="<|video_pad|>", videos=[video])


class TestBatch:
    @pytest.fixture
    def inputs(self, processor):
        return apply(processor, conversation(picture()), focal_length=333.3, depth_maps=np.full((96, 128), 1.2345))

    @pytest.mark.parametrize(
        ("args", "kwargs"), [((torch.bfloat16,), {}), (("cpu", torch.bfloat16), {}), ((), {"dtype": torch.bfloat16})]
    )
    def test_metres_are_never_cast(self, inputs, args, kwargs):
        before = {name: copy.deepcopy(inputs[name]) for name in ("focal_scale", "cameras", "depth_labels")}
        names = list(inputs)
        assert inputs.to(*args, **kwargs) is inputs
        assert inputs["pixel_values"].dtype == torch.bfloat16
        assert inputs["input_ids"].dtype == torch.int64
        assert list(inputs) == names
        for name, value in before.items():
            torch.testing.assert_close(inputs[name], value, rtol=0, atol=0)

    @pytest.mark.parametrize(("args", "kwargs"), [(("meta",), {}), ((), {"device": torch.device("meta")})])
    def test_everything_moves(self, inputs, args, kwargs):
        inputs.to(*args, **kwargs)
        tensors = [inputs[name] for name in inputs if name != "depth_labels"] + inputs["depth_labels"]
        assert {tensor.device.type for tensor in tensors} == {"meta"}

    def test_it_is_a_mapping_that_can_be_pickled(self, inputs):
        assert dict(**inputs).keys() == inputs.keys()
        again = pickle.loads(pickle.dumps(inputs))
        assert isinstance(again, DepthVLMBatchFeature)
        torch.testing.assert_close(dict(again), dict(inputs))
        again.convert_to_tensors("pt")
        assert again.to(torch.bfloat16)["focal_scale"].dtype == torch.float32
        # What the Trainer does to move a batch.
        assert type(inputs)({name: inputs[name] for name in inputs}).to(torch.float16)["cameras"].dtype == torch.float32


def test_messages_call_the_images_by_their_names(processor):
    options = {"return_tensors": "pt", "image_names": ["left.jpg", "right.jpg"]}
    two = {"images": [picture()] * 2, "text": ["<|image_pad|>"] * 2, **options}
    with pytest.warns(AssumedCameraWarning, match=r"1 of 2 image\(s\) is not known: right.jpg\."):
        processor(**two, focal_length=[99.0, None])
    with pytest.warns(UserWarning, match="^left.jpg: a focal length of 4 pixels"):
        processor(**two, focal_length=[4.0, 99.0])
    with pytest.raises(ValueError, match=r"The depth map of right.jpg has 10x5 pixels"):
        processor(**two, fov=60.0, depth_maps=[None, np.ones((5, 10))])
    with pytest.raises(ValueError, match="`image_names` has 2 entries for 1 image"):
        processor(images=picture(), text="<|image_pad|>", fov=60.0, **options)


class TestSaving:
    def test_round_trip_with_the_same_settings_or_others(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        loaded = DepthVLMProcessor.from_pretrained(tmp_path)
        loaded.save_pretrained(tmp_path / "again")
        for name in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
            assert (tmp_path / "again" / name).read_text() == (tmp_path / name).read_text()
        assert dict(loaded.image_processor.size) == {"shortest_edge": 1024, "longest_edge": 65536}
        expected = apply(processor, conversation(picture()), focal_length=500.0)
        torch.testing.assert_close(dict(apply(loaded, conversation(picture()), focal_length=500.0)), dict(expected))
        loaded = DepthVLMProcessor.from_pretrained(tmp_path, max_pixels=9999, canonical_focal_length=500.0)
        assert loaded.image_processor.size["longest_edge"] == 9999
        assert loaded.image_processor.canonical_focal_length == 500
        # The tokenizer must not keep them, or it would override a later change.
        assert not {"max_pixels", "canonical_focal_length"} & set(loaded.tokenizer.init_kwargs)

    def test_every_file_of_the_code_travels_along(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        assert sorted(path.name for path in tmp_path.glob("*.py")) == REMOTE_FILES
        settings = json.loads((tmp_path / "processor_config.json").read_text())
        assert settings["auto_map"]["AutoProcessor"] == "processing_depthvlm.DepthVLMProcessor"
        both = [f"image_processing_depthvlm.DepthVLMImageProcessor{suffix}" for suffix in ("Pil", "")]
        assert settings["image_processor"]["auto_map"]["AutoImageProcessor"] == both
        for name in REMOTE_FILES:
            text = (tmp_path / name).read_text()
            assert text.startswith("# Copyright"), name
            assert not re.search("(import|from) depthvlm", text), name

    def test_video_settings_survive_a_machine_without_torchvision(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        path = tmp_path / "processor_config.json"
        settings = json.loads(path.read_text())
        settings["video_processor"] = {"video_processor_type": "Qwen3VLVideoProcessor", "fps": 7}
        path.write_text(json.dumps(settings))
        DepthVLMProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path)
        saved = json.loads(path.read_text())["video_processor"]
        assert (saved["video_processor_type"], saved["fps"]) == ("Qwen3VLVideoProcessor", 7)

    def test_a_plain_qwen3_vl_checkpoint(self, tmp_path):
        build_toy_tokenizer().save_pretrained(tmp_path)
        settings = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "processor_class": "Qwen3VLProcessor"}
        settings |= {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
        settings |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
        video = {**settings, "video_processor_type": "Qwen3VLVideoProcessor", "fps": 3, "max_frames": 99}
        settings["image_processor_type"] = "Qwen2VLImageProcessorFast"
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
        loaded = DepthVLMProcessor.from_pretrained(tmp_path, max_pixels=99999)
        image_processor = loaded.image_processor
        assert isinstance(image_processor, DepthVLMImageProcessor)
        assert [*image_processor.image_mean, *image_processor.image_std] == [0.4, 0.5, 0.6, 0.2, 0.3, 0.4]
        assert (image_processor.patch_size, image_processor.merge_size, image_processor.resample) == (8, 2, 2)
        assert dict(image_processor.size) == {"shortest_edge": 65536, "longest_edge": 99999}
        alone = DepthVLMImageProcessor.from_pretrained(tmp_path, max_pixels=99999)
        assert alone.to_dict() == image_processor.to_dict()
        assert loaded.chat_template == build_toy_tokenizer().chat_template
        loaded.save_pretrained(tmp_path / "converted")
        again = DepthVLMProcessor.from_pretrained(tmp_path / "converted")
        assert again.to_dict()["video_processor"]["max_frames"] == 99
        assert again.image_processor.to_dict() == image_processor.to_dict()


def test_auto_classes_registered_for_a_configuration(processor, tmp_path):
    class ToyConfig(Qwen3VLConfig):
        model_type = "toy_depthvlm"

    register_auto_classes(ToyConfig)
    register_auto_classes(ToyConfig)  # importing twice is no error
    processor.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(AutoProcessor.from_pretrained(tmp_path), DepthVLMProcessor)
        assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), DepthVLMImageProcessor)
        assert isinstance(AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), DepthVLMImageProcessorPil)


def test_the_published_rounding_is_for_published_checkpoints_and_what_is_made_of_them_alone(toy_folder, tmp_path):
    nyu, published = torch.zeros(3, 480, 640), save_foreign_checkpoint(tmp_path / "published", published=True)
    plain = save_foreign_checkpoint(tmp_path / "plain", published=False)
    for folder, expected in ((toy_folder, False), (plain, False), (published, True)):
        assert DepthVLMProcessor.from_pretrained(folder).image_processor.qwen_vl_utils_rounding is expected
        alone = DepthVLMImageProcessor.from_pretrained(folder)
        assert alone.qwen_vl_utils_rounding is expected
        features = alone(nyu, focal_length=518.8579, max_pixels=4_000_000)
        assert features["image_grid_thw"][0].tolist() == [1, 58, 76 if expected else 78]
        assert features["focal_scale"].tolist() == [1.0]
    off = DepthVLMProcessor.from_pretrained(published, qwen_vl_utils_rounding=False)
    assert off.image_processor.qwen_vl_utils_rounding is False
    converted = convert_checkpoint(str(published), tmp_path / "converted")
    assert DepthVLMProcessor.from_pretrained(converted).image_processor.qwen_vl_utils_rounding is True


class TestPaddingSide:
    """Rows of unequal length end where a reply begins: padding is on the left, however the tokenizer was saved."""

    def batch(self, processor, **kwargs):
        messages = [conversation(picture(), text="a"), conversation(picture(), text="a longer question")]
        mask = apply(processor, messages, fov=60.0, padding=True, **kwargs)["attention_mask"]
        return mask[0].tolist()

    def test_a_loaded_processor_pads_left(self, processor, tmp_path):
        processor.save_pretrained(tmp_path / "first")
        settings = tmp_path / "first" / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "right"}))
        loaded = DepthVLMProcessor.from_pretrained(tmp_path / "first")
        assert (self.batch(loaded)[0], self.batch(loaded)[-1]) == (0, 1)
        assert self.batch(loaded, padding_side="right")[0] == 1
        right = DepthVLMProcessor.from_pretrained(tmp_path / "first", padding_side="right")
        assert self.batch(right)[-1] == 0
        loaded.save_pretrained(tmp_path / "second")
        assert json.loads((tmp_path / "second" / "tokenizer_config.json").read_text())["padding_side"] == "left"

    def test_a_batch_of_nano_says_what_it_says_one_by_one(self, nano):
        rooms = [render_scene(1, width=160, height=128).image, render_scene(2, width=224, height=160).image]
        messages = [conversation(Image.fromarray(room), text="What color is the crate?") for room in rooms]

        def ask(batch):
            inputs = apply(nano.processor, batch, focal_length=160.0, padding=True)
            assert bool(inputs["attention_mask"][:, -1].all())
            ids = nano.model.generate(**inputs, max_new_tokens=8, do_sample=False)
            return nano.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

        assert ask(messages) == [ask([one])[0] for one in messages]
