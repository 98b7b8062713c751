"""Every family of backbones: the plain model's words, and depth from maps that hooks on the plain model give."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_families import FAMILY_NAMES, HEAD, save_plain_checkpoint
from toy_images import noise
from toy_models import last_layer
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)
from transformers.utils import is_torchvision_available

from depthvlm import DepthVLMForConditionalGeneration, DepthVLMForDepthEstimation, DepthVLMProcessor

CLASSES = {
    "qwen3_vl": ("DepthVLM", "DepthVLMProcessor"),
    "qwen3_vl_moe": ("DepthVLMQwen3VLMoe", "DepthVLMProcessor"),
    "qwen3_5": ("DepthVLMQwen3_5", "DepthVLMProcessor"),
    "qwen3_5_moe": ("DepthVLMQwen3_5Moe", "DepthVLMProcessor"),
    "qwen2_5_vl": ("DepthVLMQwen2_5_VL", "DepthVLMQwen2_5_VLProcessor"),
    "glm46v": ("DepthVLMGlm46V", "DepthVLMGlm46VProcessor"),
    "glm4v": ("DepthVLMGlm4v", "DepthVLMGlm46VProcessor"),
}
DEFAULT_LAYERS = (1, 3, 5)  # the toys' levels with DeepStack; else the second, fourth and sixth of their eight layers
PICTURES = [
    Image.fromarray(noise(h, w, seed=i)) for i, (h, w) in enumerate([(170, 200), (96, 64), (40, 128), (32, 32)])
]
NOT_FOR_THE_BACKBONE = ("focal_scale", "cameras", "depth_labels")
MIXED = [[0, "How far is it?", 1], ["Hello."], [2, "And this?"]]  # numbers are pictures


def has_deepstack(family):
    return family.startswith("qwen3_vl")


def load(folder, **head):
    """A model on a plain checkpoint with a head that is always the same, whose depth varies."""
    torch.manual_seed(0)
    model = DepthVLMForConditionalGeneration.from_pretrained(folder, depth_config=HEAD | head).eval()
    torch.manual_seed(1)
    for name, parameter in model.depth_head.named_parameters():
        if parameter.ndim > 1 and not name.startswith("projectors."):
            torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.normal_(last_layer(model.depth_head).weight, std=0.3)
    return model


def load_processor(folder):
    """Its images have at most 100 visual tokens."""
    return DepthVLMProcessor.from_pretrained(folder, min_pixels=1024, max_pixels=100 * 32**2)


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def toy(request, tmp_path_factory):
    """A plain checkpoint of the family and its plain model; the same with a depth head, saved as well."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    plain = save_plain_checkpoint(folder / "plain", family)
    model, processor = load(plain), load_processor(plain)
    model.save_pretrained(folder / "depth")
    processor.save_pretrained(folder / "depth")
    plain_model = AutoModelForImageTextToText.from_pretrained(plain).eval()
    return SimpleNamespace(
        family=family, path=plain, folder=folder / "depth", model=model, processor=processor, plain=plain_model
    )


def prepare(toy, rows, focal_length=1000.0):
    """The processor's output for rows of pictures and words, padded on the left."""
    messages, images = [], []
    for row in rows:
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in row]
        messages.append([{"role": "user", "content": content}])
        images.append([PICTURES[part] for part in row if not isinstance(part, str)])
    text = [toy.processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    camera = {"images": images, "focal_length": focal_length} if any(images) else {}
    return toy.processor(text=text, padding=True, return_tensors="pt", **camera)


def for_plain(inputs):
    return {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_BACKBONE}


def specials(toy):
    """Tokens that no reply may hold: images without pixels."""
    return [toy.plain.config.image_token_id, toy.plain.config.video_token_id]


def assert_same_depth(first, second, tolerance=1e-6):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def levels_by_hooks(plain, inputs, layers):
    """phi of layers of the plain vision tower, one `(tokens, width)` per layer, and its own output.

    With DeepStack a level's merger is applied to what a hook saw. Without, the tower itself projects: its last block is
    made to return what the layer gave.
    """
    visual, seen, found = plain.model.visual, {}, []
    pixels = (inputs["pixel_values"], inputs["image_grid_thw"])
    hooks = [
        block.register_forward_hook(lambda m, a, output, layer=layer: seen.update({layer: output}))
        for layer, block in enumerate(visual.blocks)
    ]
    own = visual(*pixels).pooler_output
    for hook in hooks:
        hook.remove()
    for layer in layers:
        if hasattr(visual, "deepstack_merger_list"):
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(layer)]
            found.append(merger(seen[layer]))
            continue
        hook = visual.blocks[-1].register_forward_hook(lambda m, a, o, layer=layer: seen[layer])
        found.append(visual(*pixels).pooler_output)
        hook.remove()
    return found, own


@torch.no_grad()
def depth_by_hooks(toy, inputs, layers=DEFAULT_LAYERS, model=None):
    """Depth from the plain model's own states, one image after the other through the head."""
    model, tokens = model or toy.model, for_plain(inputs)
    levels, _ = levels_by_hooks(toy.plain, inputs, layers)
    final = toy.plain.model(**tokens)[0][tokens["input_ids"] == toy.plain.config.image_token_id]
    grids = [(h // 2, w // 2) for _, h, w in inputs["image_grid_thw"].tolist()]
    counts = [h * w for h, w in grids]
    depth = []
    for index, grid in enumerate(grids):
        maps = [one.split(counts)[index][None] for one in (*levels, final)]
        depth.append(model.depth_head(maps, grid)[0] * inputs["focal_scale"][index])
    return depth


class TestLoading:
    def test_the_class_and_every_auto_class(self, toy):
        name, processor = CLASSES[toy.family]
        auto = {AutoModel: "ForConditionalGeneration", AutoModelForImageTextToText: "ForConditionalGeneration"}
        auto |= {AutoModelForDepthEstimation: "ForDepthEstimation", DepthVLMForDepthEstimation: "ForDepthEstimation"}
        assert type(toy.model).__name__ == f"{name}ForConditionalGeneration"
        assert isinstance(toy.model, type(toy.plain))
        weights = toy.model.state_dict()
        for kind, end in auto.items():
            loaded = kind.from_pretrained(toy.folder)
            assert type(loaded).__name__ == f"{name}{end}"
            assert type(loaded).__module__.startswith("depthvlm.")
            assert loaded.state_dict().keys() == weights.keys()
            assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
        assert type(AutoConfig.from_pretrained(toy.folder)) is type(toy.model).config_class
        assert type(AutoProcessor.from_pretrained(toy.folder)).__name__ == processor
        end = "" if is_torchvision_available() else "Pil"
        assert type(AutoImageProcessor.from_pretrained(toy.folder)).__name__ == f"DepthVLMImageProcessor{end}"

    def test_the_backbone_is_the_plain_one(self, toy):
        own = {k: v for k, v in toy.model.state_dict().items() if not k.startswith("depth_head.")}
        plain = toy.plain.state_dict()
        assert own.keys() == plain.keys()
        assert all(torch.equal(value, plain[key]) for key, value in own.items())


class TestWords:
    def test_logits_are_the_plain_models(self, toy):
        for rows in (MIXED, [["Hi."], ["Hello there."]]):
            inputs = prepare(toy, rows)
            with torch.no_grad():
                outputs, expected = toy.model(**inputs), toy.plain(**for_plain(inputs))
            assert torch.equal(outputs.logits, expected.logits)
            assert (outputs.predicted_depth is None) is (rows is not MIXED)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"do_sample": True, "num_return_sequences": 2},
            {"num_beams": 3, "num_return_sequences": 2},
            {"cache_implementation": "static"},
            {"prefill_chunk_size": 8},
            {"use_cache": False},
        ],
        ids=str,
    )
    def test_generate(self, toy, options):
        rows = MIXED
        if "prefill_chunk_size" in options:
            rows = MIXED[:1]
        if "num_return_sequences" in options and toy.family.startswith("glm"):
            rows = [MIXED[2], MIXED[1]]  # the plain class mixes up several images of a row
        inputs = prepare(toy, rows)
        options = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": specials(toy)} | options
        torch.manual_seed(3)
        outputs = toy.model.generate(**inputs, **options, return_dict_in_generate=True)
        torch.manual_seed(3)
        assert torch.equal(outputs.sequences, toy.plain.generate(**for_plain(inputs), **options))
        assert_same_depth(outputs.predicted_depth, toy.model.predict_depth(**inputs))

    def test_beams_of_several_images_a_row(self, toy):
        """As many beams as each row has by itself."""
        options = {"num_beams": 3, "do_sample": False, "max_new_tokens": 4, "suppress_tokens": specials(toy)}
        rows = [[0, "a?", 1], [2, "b?", 3]]
        words = toy.model.generate(**prepare(toy, rows), **options)
        for index, row in enumerate(rows):
            alone = toy.model.generate(**prepare(toy, [row]), **options)
            assert torch.equal(words[index, -4:], alone[0, -4:])

    def test_rows_without_images(self, toy):
        inputs = prepare(toy, [["Hi."], ["Hello there."]])
        options = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": specials(toy)}
        assert torch.equal(toy.model.generate(**inputs, **options), toy.plain.generate(**for_plain(inputs), **options))

    def test_two_turns_on_one_cache(self, toy):
        """The plain model says the same words when it reads both turns anew."""
        inputs = prepare(toy, [[0, "How far?", 1]])
        options = {"do_sample": False, "suppress_tokens": specials(toy), "return_dict_in_generate": True}
        first = toy.model.generate(**inputs, **options, max_new_tokens=3)
        toy.model.generate(**prepare(toy, MIXED), **options, max_new_tokens=1)  # in between, another conversation
        more = toy.processor.tokenizer("And then?", return_tensors="pt")["input_ids"]
        turns = torch.cat([first.sequences, more], dim=1)
        second = toy.model.generate(turns, past_key_values=first.past_key_values, **options, max_new_tokens=4)
        anew = for_plain(inputs) | {"input_ids": turns, "attention_mask": torch.ones_like(turns)}
        types = anew["mm_token_type_ids"]
        anew["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, turns.shape[1] - types.shape[1])], dim=1)
        expected = toy.plain.generate(**anew, **options, max_new_tokens=4, use_cache=False)
        assert torch.equal(second.sequences, expected.sequences)


class TestDepth:
    def test_forward_and_predict_depth_are_the_head_on_the_plain_models_states(self, toy):
        inputs = prepare(toy, MIXED, focal_length=[900.0, 1100.0, 1000.0])
        expected = depth_by_hooks(toy, inputs)
        assert all(depth.std() > 0.01 for depth in expected)
        with torch.no_grad():
            assert_same_depth(toy.model(**inputs).predicted_depth, expected)
        assert_same_depth(toy.model.predict_depth(**inputs), expected)

    def test_padding_changes_nothing(self, toy):
        batch = toy.model.predict_depth(**prepare(toy, MIXED))
        assert_same_depth(toy.model.predict_depth(**prepare(toy, MIXED[:1])), batch[:2], 1e-5)
        assert_same_depth(toy.model.predict_depth(**prepare(toy, MIXED[2:])), batch[2:], 1e-5)

    def test_depth_features(self, toy):
        inputs = prepare(toy, MIXED)
        features = toy.model.depth_features(**inputs)
        cell = 32 if toy.family.startswith("qwen3") else 28
        sizes = [(max(1, round(p.height / cell)), max(1, round(p.width / cell))) for p in PICTURES[:3]]
        assert [one.grid for one in features] == sizes
        assert [tuple(one.maps.shape) for one in features] == [(4, *size, 32) for size in sizes]
        depth = toy.model.predict_depth(**inputs)
        for index, one in enumerate(features):
            with torch.no_grad():
                metres = toy.model.depth_head(one.maps.flatten(1, 2)[:, None], one.grid)[0]
            assert tuple(metres.shape) == tuple(side * cell for side in one.grid)
            assert_same_depth([metres * inputs["focal_scale"][index]], depth[index : index + 1])

    def test_loss_and_gradients(self, toy):
        inputs = prepare(toy, MIXED)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == toy.plain.config.image_token_id, -100)
        truth = [torch.full((50, 60), 2.0), None, torch.full((20, 64), 3.0)]
        outputs = toy.model(**inputs, labels=labels, depth_labels=truth)
        with torch.no_grad():
            plain = toy.plain(**for_plain(inputs), labels=labels)
        torch.testing.assert_close(outputs.text_loss, plain.loss, atol=0, rtol=0)
        torch.testing.assert_close(outputs.loss, plain.loss + outputs.depth_loss)
        try:
            outputs.loss.backward()
            assert all(p.grad is not None for p in toy.model.depth_head.parameters())
            assert all(p.grad is not None for p in toy.model.model.visual.parameters())
        finally:
            toy.model.zero_grad()

    def test_threads(self, toy):
        """One model, four threads, unlike pictures: the words and the depth that each has alone."""
        batches = [prepare(toy, [[picture, "How far?" + "!" * picture]]) for picture in range(4)]
        options = {"do_sample": False, "max_new_tokens": 3, "suppress_tokens": specials(toy)}

        def work(index):
            outputs = toy.model.generate(**batches[index], **options, return_dict_in_generate=True)
            with torch.no_grad():
                prefill = toy.model(**batches[index], use_cache=True)
                word = prefill.logits[:, -1:].argmax(-1)
                after = toy.model(input_ids=word, past_key_values=prefill.past_key_values).logits
            return outputs.sequences, outputs.predicted_depth[0], prefill.predicted_depth[0], after

        alone = [work(index) for index in range(4)]
        with ThreadPoolExecutor(4) as pool:
            for index, found in zip([*range(4)] * 2, pool.map(work, [*range(4)] * 2), strict=True):
                assert all(torch.equal(one, other) for one, other in zip(found, alone[index], strict=True))


class TestLevels:
    """phi of equation 2."""

    def test_phi_is_the_towers_own_output(self, toy):
        """With DeepStack that of each level; without, of the last layer: cells in reading order, and convolved."""
        inputs, visual, seen = prepare(toy, MIXED), toy.plain.model.visual, []
        pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
        hook = visual.blocks[-1].register_forward_hook(lambda m, a, o: seen.append(o))
        with torch.no_grad():
            own = visual(pixels, grid)
        hook.remove()
        config = toy.model.config
        if has_deepstack(toy.family):
            _, vision = toy.model.encode_images(pixels, grid)
            for level, feature in zip(vision.levels, own.deepstack_features, strict=True):
                assert torch.equal(torch.cat(list(level)), feature)
            return
        with torch.no_grad():
            phi = config.backbone.project(toy.model.model.visual, seen[0], grid, config.vision)
        assert torch.equal(phi, own.pooler_output)

    @pytest.mark.parametrize("kind", ["default", "first and last", "any order"])
    def test_levels_are_what_hooks_see(self, toy, kind):
        named = {"first and last": [0, 4, 7], "any order": [6, 2, 1]}
        if has_deepstack(toy.family):
            named = {"first and last": [1, 5, 3], "any order": [5, 3, 1]}
        layers = named.get(kind)
        inputs = prepare(toy, MIXED)
        model = toy.model if layers is None else load(toy.path, vision_layers=layers)
        _, vision = model.encode_images(inputs["pixel_values"], inputs["image_grid_thw"])
        expected, pooled = levels_by_hooks(toy.plain, inputs, layers or DEFAULT_LAYERS)
        assert torch.equal(torch.cat(list(vision.pooled)), pooled)
        for level, other in zip(vision.levels, expected, strict=True):
            assert torch.equal(torch.cat(list(level)), other)
        depth = model.predict_depth(**inputs)
        assert_same_depth(depth, depth_by_hooks(toy, inputs, layers or DEFAULT_LAYERS, model))
        if layers:
            assert not torch.allclose(depth[0], toy.model.predict_depth(**inputs)[0], atol=1e-3)

    def test_projectors_of_the_levels(self, toy, tmp_path):
        inputs = prepare(toy, MIXED)
        if has_deepstack(toy.family):
            with pytest.raises(ValueError, match="has a projector for every level already"):
                load(toy.path, projector="own")
            return
        own, shared = load(toy.path, projector="own"), toy.model.predict_depth(**inputs)
        for one, other in zip(own.predict_depth(**inputs), shared, strict=True):
            assert torch.equal(one, other)
        copies = {k: v for k, v in own.depth_head.state_dict().items() if k.startswith("projectors.1.merger.")}
        merger = toy.plain.model.visual.merger.state_dict()
        assert copies.keys() == {f"projectors.1.merger.{name}" for name in merger}
        assert all(torch.equal(copies[f"projectors.1.merger.{name}"], value) for name, value in merger.items())
        with torch.no_grad():
            for parameter in own.depth_head.projectors[1].parameters():
                parameter.mul_(1.5)
        changed = own.predict_depth(**inputs)
        assert not torch.allclose(changed[0], shared[0], atol=1e-3)
        own.save_pretrained(tmp_path)
        again = DepthVLMForConditionalGeneration.from_pretrained(tmp_path)
        assert again.config.head.projector == "own"
        for one, other in zip(again.predict_depth(**inputs), changed, strict=True):
            assert torch.equal(one, other)


class TestPipelines:
    def test_depth_estimation(self, toy):
        """The prompt is the token before an image; equal to the same rows written by hand."""
        images = AutoImageProcessor.from_pretrained(toy.folder, focal_length=1000.0)
        found = pipeline("depth-estimation", model=str(toy.folder), image_processor=images)(PICTURES[0])
        config = toy.plain.config
        start = config.image_start_token_id if toy.family.startswith("glm") else config.vision_start_token_id
        pixels = toy.processor.image_processor(PICTURES[0], focal_length=1000.0, return_tensors="pt")
        ids = torch.tensor([[start, *[config.image_token_id] * int(pixels["image_grid_thw"].prod() // 4)]])
        inputs = {**pixels, "input_ids": ids, "mm_token_type_ids": (ids == config.image_token_id).int()}
        [expected] = depth_by_hooks(toy, inputs)
        size = (PICTURES[0].height, PICTURES[0].width)
        [resized] = torch.nn.functional.interpolate(expected[None, None], size, mode="bilinear")[0]
        assert tuple(found["predicted_depth"].shape) == size
        torch.testing.assert_close(found["predicted_depth"], resized, atol=1e-5, rtol=1e-5)

    def test_image_text_to_text(self, toy):
        chat = pipeline("image-text-to-text", model=str(toy.folder))
        content = [{"type": "image", "image": PICTURES[0]}, {"type": "text", "text": "How far?"}]
        options = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": specials(toy)}
        [reply] = chat(
            text=[{"role": "user", "content": content}],
            generate_kwargs=options,
            processor_kwargs={"focal_length": 1000.0},
        )
        inputs = prepare(toy, [[0, "How far?"]])
        words = toy.plain.generate(**for_plain(inputs), **options)[0, inputs["input_ids"].shape[1] :]
        assert reply["generated_text"][-1]["content"] == toy.processor.decode(words, skip_special_tokens=True)


def test_sizes_with_cells_of_28_pixels(tmp_path):
    """Equation 6 by hand: sides times 1000 / f, to whole cells of 28 pixels, at most 100 of them."""
    processor = DepthVLMProcessor.from_pretrained(
        save_plain_checkpoint(tmp_path, "qwen2_5_vl"), min_pixels=28**2, max_pixels=100 * 28**2
    )
    picture = Image.fromarray(noise(168, 336))

    def size(focal_length):
        features = processor.image_processor(picture, focal_length=focal_length, return_tensors="pt")
        [[frames, rows, columns]] = features["image_grid_thw"].tolist()
        assert frames == 1
        return (rows * 14, columns * 14), float(features["focal_scale"][0])

    assert size(2000.0) == ((84, 168), 1.0)  # half: 3 x 6 cells
    assert size(1200.0) == ((140, 280), 1.0)  # 5 x 10 cells
    # Twice as large would be 12 x 24 cells; at most 100 are 7 x 14: 196 of 168 pixels, an effective focal of 583.3.
    bounded, scale = size(500.0)
    assert bounded == (196, 392)
    assert scale == pytest.approx(500 * 196 / 168 / 1000, rel=1e-6)


class TestVideos:
    """Patches by hand, as the video processors make them: those need torchvision."""

    def inputs(self, toy, *parts):
        """A row of words (a number), images ("image", 2x3 tokens) and videos ("video", two frames of 2x2 tokens)."""
        config, generator = toy.plain.config, torch.Generator().manual_seed(0)
        width = 6 * config.vision_config.patch_size**2
        one_run = toy.family == "qwen2_5_vl"  # elsewhere a time stamp stands between the frames
        video = config.image_token_id if toy.family.startswith("glm") else config.video_token_id
        ids, types, found = [], [], {}
        for part in parts:
            new, kind = torch.randint(1, 90, (part,), generator=generator).tolist() if part in range(9) else [], 0
            if part == "image":
                new, kind = [config.image_token_id] * 6, 1
                found |= {"pixel_values": torch.randn(24, width, generator=generator)}
                found |= {"image_grid_thw": torch.tensor([[1, 4, 6]])}
            elif part == "video":
                new, kind = [video] * 4 + ([] if one_run else [5]) + [video] * 4, 2
                found |= {"pixel_values_videos": torch.randn(32, width, generator=generator)}
                found |= {"video_grid_thw": torch.tensor([[2, 4, 4]])}
                found |= {"second_per_grid_ts": torch.tensor([0.5])} if one_run else {}
            ids += new
            types += [0 if token == 5 else kind for token in new]
        return found | {"input_ids": torch.tensor([ids]), "mm_token_type_ids": torch.tensor([types])}

    def test_a_video_alone(self, toy):
        inputs = self.inputs(toy, 3, "video", 4)
        with torch.no_grad():
            outputs, expected = toy.model(**inputs), toy.plain(**inputs)
        assert torch.equal(outputs.logits, expected.logits)
        assert outputs.predicted_depth is None
        options = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": specials(toy)}
        words = toy.model.generate(**inputs, **options, return_dict_in_generate=True)
        assert torch.equal(words.sequences, toy.plain.generate(**inputs, **options))
        assert "predicted_depth" not in words

    @pytest.mark.parametrize("parts", [(2, "image", 2, "video", 3), (2, "video", 3, "image", 2)], ids=str)
    def test_an_image_beside_a_video(self, toy, parts):
        """The image's depth is that of the plain model's states."""
        inputs = self.inputs(toy, *parts)
        if toy.family.startswith("glm"):  # one token for both: the plain class cannot tell them apart
            for model in (toy.model, toy.plain):
                with pytest.raises(ValueError, match="features and image tokens do not match"):
                    model(**inputs)
            return
        with torch.no_grad():
            outputs, expected = toy.model(**inputs), toy.plain(**inputs)
        assert torch.equal(outputs.logits, expected.logits)
        depth = depth_by_hooks(toy, inputs | {"focal_scale": torch.ones(1)})
        assert_same_depth(outputs.predicted_depth, depth)
        assert_same_depth(toy.model.predict_depth(**inputs), depth)
        options = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": specials(toy)}
        words = toy.model.generate(**inputs, **options, return_dict_in_generate=True)
        assert torch.equal(words.sequences, toy.plain.generate(**inputs, **options))
        assert_same_depth(words.predicted_depth, depth)

    @pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
    def test_the_processor_with_torchvision(self, toy):
        clip = np.stack([noise(64, 96, seed=seed) for seed in range(4)])
        message = [{"role": "user", "content": [{"type": "video", "video": clip}]}]
        inputs = toy.processor.apply_chat_template(
            message, tokenize=True, return_dict=True, return_tensors="pt", do_sample_frames=False
        )
        with torch.no_grad():
            assert torch.equal(toy.model(**inputs).logits, toy.plain(**inputs).logits)
