"""The comparison of vision levels: nano without DeepStack, heads on kept states, the table."""

import compare_vision_levels
import pytest
import torch
from compare_vision_levels import (
    FIRST_SEED,
    GROUP,
    METRICS,
    Backbones,
    Choice,
    all_choices,
    as_table,
    head_widths,
    layer_choices,
    own_less_shared,
    score,
    train,
    training_files,
    true_depth,
)
from depthvlm.benchmark.synthetic import draw_scene
from depthvlm.modeling_depthvlm.qwen3_5_depthvlm import DepthVLMQwen3_5Config, DepthVLMQwen3_5ForConditionalGeneration
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def backbones():
    return Backbones()


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(FIRST_SEED + number, 160.0, GROUP) for number in (0, 1, 3 * GROUP)]  # two sizes


def test_words_of_the_double_are_nanos(backbones):
    """Qwen3-VL's own code computes what Qwen3.5's must give with these weights."""
    ids = torch.randint(3, 900, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (model(input_ids=ids).logits for model in (backbones.nano, backbones.model))
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "choice",
    [
        Choice(layers=(0, 3, 5)),
        Choice(layers=(0, 3, 5), projector="own"),
        Choice("vit", (1, 2, 3)),
        Choice("llm"),
        Choice(deepstack=True),
    ],
    ids=str,
)
def test_a_head_on_kept_states_predicts_what_the_whole_model_does(backbones, scenes, choice):
    head = backbones.new_head(choice, 0)
    with torch.no_grad():
        head.scratch.output_conv2[2].weight.mul_(1e5)  # no longer near one metre
        for parameter in head.projectors.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))  # nor like the shared projector
        if choice.deepstack:
            model = backbones.nano
            kept, model.depth_head = model.depth_head, head
            expected = model.predict_depth(**backbones.inputs(scenes))
            model.depth_head = kept
        else:
            settings = backbones.config.to_dict()
            settings["depth_config"] = head_widths(backbones.config.head) | {
                "feature_source": choice.source,
                "vision_layers": list(choice.layers) or None,
                "projector": choice.projector,
            }
            model = DepthVLMQwen3_5ForConditionalGeneration(DepthVLMQwen3_5Config(**settings)).eval()
            model.model.load_state_dict(backbones.model.model.state_dict())
            model.depth_head.load_state_dict(head.state_dict())
            expected = model.predict_depth(**backbones.inputs(scenes))
        found = backbones.predict(head, choice, backbones.states(scenes))
    assert len(found) == 3
    assert found[0].shape != found[2].shape
    assert found[0].std() > 0.1
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-4)


def test_kept_files_give_the_true_depth_of_their_scenes(backbones, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_vision_levels, "BATCH", 4)
    files = training_files(tmp_path, backbones, 4)
    before = files[0].stat().st_mtime_ns
    assert training_files(tmp_path, backbones, 4) == files
    assert files[0].stat().st_mtime_ns == before
    choice = Choice(layers=(1, 2, 3), projector="own")
    head, losses = train(backbones, choice, 0, files, 4)
    assert losses[-1] < losses[0]
    for number, depth in enumerate(true_depth(load_file(files[0]))):
        assert torch.equal(depth, torch.from_numpy(draw_scene(FIRST_SEED + number, 160.0, GROUP).depth).float())
    scores = score(backbones, head, choice, {"room": files})
    assert all(len(scores[metric]) == 4 for metric in METRICS)
    started = [one.weight for one in backbones.new_head(choice, 0).projectors[0].values() if hasattr(one, "weight")]
    trained = [one.weight for one in head.projectors[0].values() if hasattr(one, "weight")]
    assert all(not torch.equal(a, b) for a, b in zip(started, trained, strict=True))


def test_layers_of_the_published_depth_and_of_nanos():
    """DeepStack of Qwen3-VL-8B is at 8, 16 and 24 of 27 layers; two, four and six sixths are nano's 1, 3 and 5."""
    assert layer_choices(27, [6, 13, 19])["thirds"] == (8, 16, 24)
    assert layer_choices(6, [1, 2, 3])["thirds"] == (1, 3, 5)
    assert layer_choices(6, [1, 2, 3])["last three"] == (3, 4, 5)
    assert len(all_choices(6, [1, 2, 3])) == 15


def run(*delta1):
    values = {f"{kind}/0/0": value for kind, value in zip(("room", "street"), delta1, strict=True)}
    return {"scores": dict.fromkeys(METRICS, values)}


def test_table_compares_equal_seeds():
    choices = {name: Choice(layers=(1, 2, 3)) for name in ("quarters, shared", "other")}
    table = as_table({"quarters, shared": [run(0.5, 0.7), run(0.1, 0.1)], "other": [run(0.625, 0.825)]}, choices)
    default, other = table.splitlines()[2:]
    assert "| 2 | 0.350 (" in default  # (0.5 + 0.7 + 0.1 + 0.1) / 4
    assert "| 0.600, 0.100 |" in default
    assert other.startswith("| other | 1, 2, 3 | 1 | 0.725 (")
    assert other.endswith("| +0.125 (+0.125 to +0.125) |")  # against the first seed alone


def test_own_projectors_are_compared_with_the_shared_one_of_the_same_layers():
    runs = {
        "late, shared": [run(0.5, 0.7)],
        "late, own": [run(0.625, 0.825), run(0.9, 0.9)],
        "LLM alone": [run(0.1, 0.1)],
    }
    assert own_less_shared(runs).splitlines()[2:] == ["| late " + "| +0.125 (+0.125 to +0.125) " * 3 + "|"]
