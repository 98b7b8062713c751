"""What transformers' own tests ask of a model class of each family, with the plain class as the reference."""

from typing import Any

import pytest
import torch
from depthvlm.modeling_depthvlm import FAMILIES
from toy_families import FAMILY_NAMES, HEAD, save_plain_checkpoint
from transformers import AutoModelForImageTextToText, PreTrainedModel

from depthvlm import DepthVLMForConditionalGeneration


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PreTrainedModel]:
    """Ours and the plain model of a family, with the same weights."""
    folder = save_plain_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return DepthVLMForConditionalGeneration.from_pretrained(folder, depth_config=HEAD).eval(), plain


def inputs_for(model: Any, images: int = 2) -> dict[str, torch.Tensor]:
    """A row with images of two by three tokens, words around each."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    vision, start = config.vision_config, getattr(config, config.backbone.image_start)
    ids: list[int] = []
    for _ in range(images):
        ids += [*torch.randint(1, 90, (5,), generator=generator).tolist(), start, *[config.image_token_id] * 6]
    ids += torch.randint(1, 90, (4,), generator=generator).tolist()
    side = vision.spatial_merge_size
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    input_ids = torch.tensor([ids])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == config.image_token_id).int(),
        "pixel_values": torch.randn(images * 6 * side**2, patch, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * side, 3 * side]] * images),
    }


@pytest.mark.parametrize("beams", [1, 2])
def test_words_from_embeddings_are_the_plain_models(models: tuple[Any, PreTrainedModel], beams: int) -> None:
    ours, plain = models
    inputs = inputs_for(ours, images=3 - beams)  # plain GLM mixes up the images of a row with beams
    ids = inputs.pop("input_ids")
    inputs["inputs_embeds"] = ours.get_input_embeddings()(ids).detach()
    settings: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    expected = plain.generate(**inputs, **settings)
    assert expected.shape == (1, 5)
    torch.testing.assert_close(ours.generate(**inputs, **settings), expected)


@pytest.mark.parametrize("output_depth", [True, False], ids=["depth", "words"])
@pytest.mark.parametrize("spoil", ["image", "tokens"])
def test_images_that_do_not_match_are_told_as_by_the_plain_model(
    models: tuple[Any, PreTrainedModel], spoil: str, output_depth: bool
) -> None:
    ours, plain = models
    inputs = inputs_for(ours)
    if spoil == "image":  # one is missing
        inputs |= {name: inputs[name].chunk(2)[0] for name in ("pixel_values", "image_grid_thw")}
    else:  # the prompt was cut in the last image
        inputs |= {name: inputs[name][:, :-6] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with pytest.raises(ValueError, match="do not match") as expected:
        plain(**inputs)
    with pytest.raises(ValueError, match="do not match") as told:
        ours(**inputs, output_depth=output_depth)
    assert str(told.value) == str(expected.value)


@pytest.mark.parametrize("given", [True, False])
def test_router_logits_are_returned_as_asked_whatever_the_configuration_says(
    models: tuple[Any, PreTrainedModel], given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = models
    inputs, told = inputs_for(ours), {}
    for name, model in (("ours", ours), ("plain", plain)):
        if hasattr(model.config.text_config, "output_router_logits"):
            monkeypatch.setattr(model.config.text_config, "output_router_logits", not given)
        with torch.no_grad():
            told[name] = model(**inputs, output_router_logits=given)
    expected = getattr(told["plain"], "router_logits", None) or ()
    assert bool(expected) == (given and hasattr(plain.config.text_config, "num_experts"))
    torch.testing.assert_close(tuple(told["ours"].router_logits or ()), tuple(expected))
    torch.testing.assert_close(told["ours"].aux_loss, getattr(told["plain"], "aux_loss", None))


def test_missing_weights_are_drawn_as_by_the_plain_model(
    models: tuple[Any, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = PreTrainedModel._initialize_weights

    def draw_seeded(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        torch.manual_seed(0)
        draw(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", draw_seeded)
    ours, plain = (
        type(model).from_pretrained(None, config=model.config, state_dict={}).state_dict() for model in models
    )
    for name, weight in plain.items():
        assert torch.equal(ours[name], weight), name


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_vision_tower_of_three_layers_is_read_as_it_is(family: str) -> None:
    vision = {"depth": 3, "deepstack_visual_indexes": [0, 1, 2]}
    assert FAMILIES[family].config(vision_config=vision).vision_layers == [0, 1, 2]
