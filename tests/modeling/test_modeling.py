"""What a batch may hold, and that every road to depth gives the same metres."""

import numpy as np
import pytest
import torch
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration, DepthVLMForDepthEstimation
from depthvlm.modeling_depthvlm.losses_depthvlm import resize_depth
from depthvlm.processing import post_process_depth
from PIL import Image
from toy_models import IMAGE, last_layer, toy_config, toy_inputs, toy_model
from transformers import Qwen3VLForConditionalGeneration, StaticCache

HEADS = [
    {"head_type": "dpt_light", "feature_source": "vit+llm"},
    {"head_type": "dpt_light", "feature_source": "vit"},
    {"head_type": "dpt_light", "feature_source": "llm"},
    {"head_type": "dpt", "feature_source": "vit+llm"},
    {"head_type": "dpt", "feature_source": "llm"},
    {"head_type": "mlp", "feature_source": "llm_final"},
    {"head_type": "mlp", "feature_source": "vit+llm"},
    {"head_type": "dpt_sharp", "feature_source": "vit+llm"},
    {"head_type": "dpt_sharp", "feature_source": "vit"},
    {"head_type": "dpt_sharp", "feature_source": "llm"},
]
MIXED = [[3, (2, 3), 4, (3, 2), 2], [5], [1, (2, 3), 6], [(1, 1), 3]]
SIZES = [(64, 96), (96, 64), (64, 96), (32, 32)]


def assert_same_depth(first, second, tolerance=1e-5):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.fixture
def model():
    return toy_model()


@pytest.mark.parametrize("head", HEADS, ids=lambda h: "-".join(h.values()))
def test_every_head_and_source_in_a_mixed_batch(head):
    """Several images a row, different sizes, a text-only row, a 1x1 grid; equal to one image at a time."""
    model = toy_model(head)
    inputs = toy_inputs(MIXED)
    with torch.no_grad():
        depth = model(**inputs).predicted_depth
    assert [tuple(d.shape) for d in depth] == SIZES
    assert all(d.dtype == torch.float32 and (d > 0).all() for d in depth)
    assert_same_depth(model.predict_depth(**inputs), depth)
    row = toy_inputs(MIXED)
    alone = {key: row[key][2:3, : 1 + 2 + 6 + 6] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with torch.no_grad():
        single = model(**alone, pixel_values=row["pixel_values"][48:72], image_grid_thw=row["image_grid_thw"][2:3])
    assert_same_depth(single.predicted_depth, depth[2:3])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    rows = [[3, (2, 2), 9], [(2, 3), 2]]
    batch = model.predict_depth(**toy_inputs(rows, side=side))
    assert_same_depth(batch, model.predict_depth(**toy_inputs(rows, side="right")))


def test_no_image(model):
    outputs = model(**toy_inputs([[4], [7]]))
    assert outputs.predicted_depth is None
    assert outputs.logits.shape == (2, 7, 99)


def test_one_vision_pass_and_one_backbone_pass(model):
    calls = {"vision": 0, "llm": 0, "head": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.model.visual.register_forward_hook(count("vision"))
    model.model.language_model.register_forward_hook(count("llm"))
    model.depth_head.register_forward_hook(count("head"))
    model(**toy_inputs([[2, (2, 2), (2, 2), 3], [(2, 2), 1]]))
    assert calls == {"vision": 1, "llm": 1, "head": 1}  # images of equal grid share the head's pass
    model.generate(**toy_inputs([[2, (2, 2), 3]]), max_new_tokens=4, return_dict_in_generate=True)
    assert calls == {"vision": 2, "llm": 5, "head": 2}  # decoding steps do not touch the head


def test_predict_depth_runs_nothing_after_the_last_image(model):
    lengths = []
    model.model.language_model.register_forward_hook(lambda m, a, o: lengths.append(o[0].shape[1]))
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the LM head ran"))
    model.predict_depth(**toy_inputs([[3, (2, 2), 20]]))
    assert lengths == [3 + 1 + 4]


def test_a_cache_goes_on_from_its_own_positions(model):
    """Whatever the model saw in between: words by hand, one at a time, and by `generate`, are those of one run."""
    inputs = toy_inputs([[3, (2, 3), 4]])
    words = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=[90, 91, 92, 93])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for position in range(words.shape[1] - 6, words.shape[1] - 1):
            model.predict_depth(**toy_inputs([[(4, 4), 1]]))
            model(**toy_inputs([[(1, 4), 1]]))
            model.generate(**toy_inputs([[(3, 4), 1]]), max_new_tokens=1)
            logits = model(input_ids=words[:, position : position + 1], past_key_values=cache).logits[0, -1]
            logits[[90, 91, 92, 93]] = -torch.inf
            assert logits.argmax() == words[0, position + 1]
        first = model.generate(
            **inputs, max_new_tokens=2, return_dict_in_generate=True, suppress_tokens=[90, 91, 92, 93]
        )
        model.generate(**toy_inputs([[(3, 4), 1]]), max_new_tokens=1)
        rest = model.generate(
            first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, suppress_tokens=[90, 91, 92, 93]
        )
    assert torch.equal(rest, words)


def test_output_size(model):
    inputs = toy_inputs([[(2, 3), 1, (1, 2)]])
    assert [tuple(d.shape) for d in model.predict_depth(**inputs, output_size=(50, 70))] == [(50, 70)] * 2
    sizes = [(50, 70), (20, 30)]
    assert [tuple(d.shape) for d in model.predict_depth(**inputs, output_size=sizes)] == sizes
    with pytest.raises(ValueError, match="1 sizes for 2 images"):
        model.predict_depth(**inputs, output_size=[(50, 70)])


def test_one_resize_for_all_that_is_returned(model):
    """Pixel centres at 0.5: `output_size`, post-processing and Pillow agree; twice as wide by hand."""
    inputs = toy_inputs([[(2, 3), 1]])
    [depth] = model.predict_depth(**inputs)
    for size in [(50, 70), (128, 192), (32, 48)]:
        [resized] = model.predict_depth(**inputs, output_size=size)
        [processed] = post_process_depth(model.predict_depth(**inputs), [size])
        assert torch.equal(resized, processed["predicted_depth"])
        if size > tuple(depth.shape):  # going down Pillow averages over more pixels
            pillow = Image.fromarray(depth.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
            torch.testing.assert_close(resized, torch.from_numpy(np.asarray(pillow).copy()), atol=1e-4, rtol=1e-4)
    ramp = resize_depth(torch.tensor([[[1.0, 2.0]]]), (1, 4))
    assert ramp.tolist() == [[[1.0, 1.25, 1.75, 2.0]]]
    assert resize_depth(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), (1, 2)).tolist() == [[[2.0, 6.0]]]


def test_focal_scale_is_exact(model):
    inputs = toy_inputs([[(2, 2), 1, (2, 2)]])
    base = model.predict_depth(**inputs)
    scaled = model.predict_depth(**inputs, focal_scale=torch.tensor([2.0, 0.5]))
    assert torch.equal(scaled[0], 2 * base[0])
    assert torch.equal(scaled[1], 0.5 * base[1])


@pytest.mark.parametrize("source", ["vit+llm", "llm"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"use_cache": False},
    ],
    ids=str,
)
def test_generate_gives_the_same_depth_and_plain_text(options, source):
    model = toy_model({"feature_source": source})
    plain = Qwen3VLForConditionalGeneration(model.config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("depth_head.")})
    rows = [[2, (2, 3), 4]] if "prefill_chunk_size" in options else [[2, (2, 3), 4, (1, 2), 1], [9], [(2, 3), 3]]
    inputs = toy_inputs(rows, side="left")
    options = options | {"max_new_tokens": 6, "suppress_tokens": [90, 91, 92, 93]}  # words, not image tokens
    torch.manual_seed(0)
    outputs = model.generate(**inputs, return_dict_in_generate=True, **options)
    torch.manual_seed(0)
    assert torch.equal(outputs.sequences, plain.generate(**inputs, **options))
    assert_same_depth(outputs.predicted_depth, model.predict_depth(**inputs))


def test_generate_with_a_given_cache(model):
    inputs = toy_inputs([[2, (2, 3), 4]])
    cache = StaticCache(config=model.config, max_cache_len=64)
    outputs = model.generate(**inputs, past_key_values=cache, max_new_tokens=3, return_dict_in_generate=True)
    assert_same_depth(outputs.predicted_depth, model.predict_depth(**inputs))


def test_generate_goes_on_from_a_cache_of_words(model):
    inputs = toy_inputs([[3, (2, 2), 2, 4, (2, 3), 1]])
    with torch.no_grad():
        cache = model(input_ids=inputs["input_ids"][:, :3], use_cache=True).past_key_values
    outputs = model.generate(**inputs, past_key_values=cache, max_new_tokens=2, return_dict_in_generate=True)
    assert_same_depth(outputs.predicted_depth, model.predict_depth(**inputs))


def test_generate_on_rows_padded_right_says_what_single_rows_say(model):
    rows = [[2, (2, 3), 1], [7, (1, 2), 12], [3]]
    options = {"max_new_tokens": 5, "suppress_tokens": [90, 91, 92, 93], "return_dict_in_generate": True}
    left, right = (model.generate(**toy_inputs(rows, side=side), **options) for side in ("left", "right"))
    assert torch.equal(left.sequences, right.sequences)
    assert_same_depth(right.predicted_depth, left.predicted_depth)
    single = {k: v[1:2] for k, v in toy_inputs(rows).items() if not k.startswith(("pixel", "image"))}
    single |= {"pixel_values": toy_inputs(rows)["pixel_values"][24:], "image_grid_thw": torch.tensor([[1, 2, 4]])}
    assert torch.equal(model.generate(**single, **options).sequences, right.sequences[1:2])
    with pytest.raises(ValueError, match="padded on the right, and position_ids"):
        model.generate(**toy_inputs(rows), position_ids=torch.zeros(3, 3, 23), max_new_tokens=2)


def test_generate_without_dict_is_plain(model):
    sequences = model.generate(**toy_inputs([[2, (2, 2), 3]]), focal_scale=torch.ones(1), max_new_tokens=3)
    assert isinstance(sequences, torch.Tensor)


def test_generate_errors(model):
    inputs = toy_inputs([[2, (2, 2), 3]])
    with pytest.raises(ValueError, match="return_dict_in_generate"):
        model.generate(**inputs, output_depth=True, max_new_tokens=2)
    text = toy_inputs([[4]])
    with pytest.raises(ValueError, match="no image"):
        model.generate(**text, output_depth=True, return_dict_in_generate=True, max_new_tokens=2)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(
            inputs_embeds=embeddings, **inputs, output_depth=True, return_dict_in_generate=True, max_new_tokens=2
        )


def test_forward_takes_inputs_embeds(model):
    inputs = toy_inputs([[2, (2, 2), 3]])
    expected = model.predict_depth(**inputs)
    ids = inputs["input_ids"]
    positions, _ = model.model.get_rope_index(**{k: inputs[k] for k in inputs if k != "pixel_values"})
    embeds = {k: v for k, v in inputs.items() if k not in ("input_ids", "mm_token_type_ids")}
    outputs = model(inputs_embeds=model.get_input_embeddings()(ids), position_ids=positions, **embeds)
    assert_same_depth(outputs.predicted_depth, expected)


def test_errors_say_what_to_do(model):
    inputs = toy_inputs([[2, (2, 2), 3]])
    with pytest.raises(ValueError, match="2 `depth_labels` for 1 images"):
        model(**inputs, depth_labels=[torch.ones(4, 4)] * 2)
    with pytest.raises(ValueError, match=r"expected one per image: \(1,\)"):
        model(**inputs, focal_scale=torch.ones(3))
    with pytest.raises(ValueError, match="there is no image"):
        model(**toy_inputs([[3]]), depth_labels=[torch.ones(4, 4)])


def test_when_depth_runs(model):
    inputs = toy_inputs([[2, (2, 2), 3]])
    assert model(**inputs).predicted_depth is not None
    assert model(**inputs, output_depth=False).predicted_depth is None
    model.train()
    assert model(**inputs).predicted_depth is None
    assert model(**inputs, output_depth=True).predicted_depth is not None
    assert model(**inputs, depth_labels=[torch.ones(8, 8)]).depth_loss is not None


def test_loss_is_equation_5():
    model = toy_model(depth_loss_weight=0.25)
    inputs = toy_inputs([[2, (2, 2), 3]])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    outputs = model(**inputs, labels=labels, depth_labels=[torch.full((10, 10), 2.0)])
    torch.testing.assert_close(outputs.loss, outputs.text_loss + 0.25 * outputs.depth_loss)
    only_depth = model(**inputs, depth_labels=[torch.full((10, 10), 2.0)])
    torch.testing.assert_close(only_depth.loss, 0.25 * outputs.depth_loss)


@pytest.mark.parametrize("head", HEADS, ids=lambda h: "-".join(h.values()))
def test_every_parameter_of_the_head_gets_a_gradient_without_depth(head):
    """Distributed training hangs on a parameter without one."""
    model = toy_model(head).train()
    inputs = toy_inputs([[6], [3]])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.depth_head.parameters())


def test_half_precision_keeps_metres_in_float32(model):
    inputs = toy_inputs([[2, (2, 2), 3]])
    model.to(torch.bfloat16)
    seen = []
    last_layer(model.depth_head).register_forward_hook(lambda m, a, o: seen.append((a[0].dtype, o.dtype)))
    depth = model.predict_depth(**inputs)
    assert depth[0].dtype == torch.float32
    assert seen == [(torch.bfloat16, torch.float32)]
    model.to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs, depth_labels=[torch.ones(8, 8)])
    assert outputs.predicted_depth[0].dtype == outputs.depth_loss.dtype == torch.float32
    assert depth[0].unique().numel() > 3000  # bfloat16 would leave a few hundred steps


def test_depth_estimator_from_pixels_alone(tmp_path):
    config = toy_config(depth_prompt_ids=[5, 6, 92])
    torch.manual_seed(0)
    model = DepthVLMForDepthEstimation(config).eval()
    inputs = toy_inputs([[(2, 3)], [(2, 2)]])
    pixels = {k: inputs[k] for k in ("pixel_values", "image_grid_thw")}
    depth = model(**pixels, focal_scale=torch.tensor([1.0, 3.0])).predicted_depth
    assert [tuple(d.shape) for d in depth] == [(64, 96), (64, 64)]
    ids = torch.tensor([[5, 6, 92] + [IMAGE] * 6, [5, 6, 92] + [IMAGE] * 4 + [0, 0]])
    parent = DepthVLMForConditionalGeneration(config).eval()
    parent.load_state_dict(model.state_dict())
    expected = parent.predict_depth(
        input_ids=ids, attention_mask=(ids > 0).long(), mm_token_type_ids=(ids == IMAGE).int(), **pixels
    )
    assert_same_depth(depth, [expected[0], 3 * expected[1]])
    loss = model(**pixels, depth_labels=[torch.ones(4, 6), None]).loss
    assert loss.requires_grad
    assert loss.isfinite()


def test_a_fresh_model_predicts_about_one_metre():
    torch.manual_seed(0)
    for head in HEADS:
        model = DepthVLMForConditionalGeneration(toy_config(head)).eval()
        depth = torch.cat([d.flatten() for d in model.predict_depth(**toy_inputs(MIXED))])
        assert depth.min() > 0.9
        assert depth.max() < 1.1


@pytest.mark.slow
def test_torch_compile(model):
    inputs = toy_inputs(MIXED)
    with torch.no_grad():
        expected = model(**inputs)
        compiled = torch.compile(model, backend="eager")(**inputs)
    assert_same_depth(compiled.predicted_depth, expected.predicted_depth)
    torch.testing.assert_close(compiled.logits, expected.logits)


def test_gradient_checkpointing_changes_nothing(model):
    inputs = toy_inputs([[2, (2, 2), 3]])
    truth = [torch.full((16, 16), 2.0)]
    gradients = []
    for checkpointing in (False, True):
        model.train()
        model.zero_grad()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"], depth_labels=truth, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_resized_vocabulary(model, tmp_path):
    inputs = toy_inputs([[2, (2, 2), 3]])
    expected = model.predict_depth(**inputs)
    model.resize_token_embeddings(120)
    assert model(**inputs).logits.shape[-1] == 120
    model.save_pretrained(tmp_path)
    assert_same_depth(DepthVLMForConditionalGeneration.from_pretrained(tmp_path).predict_depth(**inputs), expected)
