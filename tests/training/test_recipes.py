"""The recipes parse with the script's own parser and say what the paper says; accelerate reads the launcher's files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from conftest import REPOSITORY
from datasets import IterableDataset
from depthvlm.modeling_depthvlm import FAMILIES, DepthHeadConfig, DepthVLMConfig
from depthvlm.training.sft import generate, make_parser
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from toy_families import FAMILY_NAMES, family_config, family_tokenizer
from trl import get_peft_config

from depthvlm.cli.sft import find_recipes

RECIPES = sorted((REPOSITORY / "training" / "recipes").glob("*.yaml"))
ABLATIONS = REPOSITORY / "training" / "recipes" / "ablations"
LAUNCHERS = sorted((REPOSITORY / "training" / "accelerate").glob("*.yaml"))
GPUS = 80  # the paper's 10 nodes of 8
NAMED_BY_USER = ["--output_dir", "out"]


def parse(name: str, *args: str) -> tuple[Any, ...]:
    """(script, training, model, dataset) arguments of a recipe, parsed where there is no GPU."""
    path = str(REPOSITORY / "training" / "recipes" / name)
    given = ["--config", path, *NAMED_BY_USER, "--use_cpu", "true", *args]
    *parsed, _ = make_parser().parse_args_and_config(given, return_remaining_strings=True)
    return tuple(parsed)


def on_meta(family: str) -> Any:
    """A toy model of a family, without data."""
    plain = family_config(family, family_tokenizer(family)).to_dict()
    del plain["model_type"]
    with torch.device("meta"):
        return FAMILIES[family].model(FAMILIES[family].config(**plain))


@pytest.mark.parametrize("recipe", [*RECIPES, *sorted(ABLATIONS.iterdir())], ids=lambda path: path.stem)
def test_every_recipe_says_for_which_backbone_it_was_written(recipe):
    [line] = [line for line in recipe.read_text().splitlines() if line.startswith("# Backbone:")]
    assert "Qwen3-VL" in line


def test_there_are_all_of_them():
    nano = ["nano_stage0", "nano_stage1", "nano_stage2", "nano_stage3"]
    assert [path.stem for path in RECIPES] == ["lora_1gpu", *nano, "stage1", "stage2", "stage2_mixed"]
    assert [path.stem for path in LAUNCHERS] == ["cpu", "fsdp2_10nodes", "fsdp2_1node", "multi_gpu", "zero3"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_key_is_an_option_and_is_taken(recipe):
    keys = yaml.safe_load(recipe.read_text())
    parsed = parse(recipe.name)  # an unknown key is an error
    values = {name: value for arguments in parsed for name, value in vars(arguments).items()}
    for key, value in keys.items():
        if key == "accelerate_config":  # the launcher's
            assert (REPOSITORY / "training" / "accelerate" / f"{value}.yaml").is_file()
        elif key not in ("output_dir", "use_cpu", "datasets", "report_to"):
            assert values[key] == value, key


@pytest.mark.parametrize(
    ("recipe", "rate", "warmup", "trainable", "batch"),
    [
        ("stage1.yaml", 3.5e-4, 0.04, ["head"], 2560),
        ("stage2.yaml", 2e-5, 0.05, ["head+llm"], 640),
        ("stage2_mixed.yaml", 2e-5, 0.05, ["head+llm"], 640),
    ],
)
def test_the_papers_values(recipe, rate, warmup, trainable, batch):
    _, training, model, _ = parse(recipe)
    assert training.learning_rate == rate
    assert set(training.group_learning_rates().values()) == {None}
    assert training.get_warmup_steps(1000) == 1000 * warmup
    assert training.lr_scheduler_type == "cosine"
    assert training.optim == "adamw_torch"
    assert training.max_grad_norm == 1.0
    assert training.num_train_epochs == 1
    assert training.max_steps == -1
    assert training.bf16
    assert model.dtype == "float32"
    assert training.trainable == trainable
    assert training.depth_loss_weight == 1.0
    assert training.silog_lambda == 0.5
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * GPUS == batch
    assert training.max_length is None


# What a row of the paper's tables 4 to 7 differs in from the paper's own run, by the stage that it changes.
OURS = {"head_type": "dpt_light", "feature_source": "vit+llm", "canonical_focal_length": 1000.0}
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "table4_mlp": (1, {"head_type": "mlp", "feature_source": "llm_final"}),
    "table4_mlp_multiscale": (1, {"head_type": "mlp"}),
    "table4_dpt": (1, {"head_type": "dpt"}),
    "table5_vit": (1, {"feature_source": "vit"}),
    "table5_llm": (1, {"feature_source": "llm"}),
    "table6_stage2_only": (2, {"model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct"}),
    "table6_unfrozen_vit": (2, {"trainable": ["all"]}),
    "table7_raw": (1, {"dataset_generator": "depthvlm.benchmark.build.shards:raw_images"}),
    "table7_fc800": (1, {"canonical_focal_length": 800.0}),
    "table7_fc1200": (1, {"canonical_focal_length": 1200.0}),
}


def test_there_is_a_file_for_every_row_of_the_ablations():
    assert {path.stem for path in ABLATIONS.iterdir()} == ROWS.keys()


@pytest.mark.parametrize("row", ROWS)
def test_an_ablation_changes_its_one_thing_and_nothing_else(row):
    """Alone in TRL's parser, and after its stage as the command combines them."""
    stage, differs = ROWS[row]
    alone = parse(f"ablations/{row}.yaml")
    given = find_recipes(["--config", f"stage{stage}.yaml", "--config", f"ablations/{row}.yaml", *NAMED_BY_USER])
    *combined, _ = make_parser().parse_args_and_config([*given, "--use_cpu", "true"], return_remaining_strings=True)
    keys = yaml.safe_load((ABLATIONS / f"{row}.yaml").read_text())
    for arguments, its, stages in zip(combined, alone, parse(f"stage{stage}.yaml"), strict=True):
        for name, value in vars(arguments).items():
            if name not in ("logging_dir", "run_name"):
                assert str(value) == str(vars(its if name in keys else stages)[name]), name
    values = {name: value for arguments in combined for name, value in vars(arguments).items()}
    kwargs = dict(values["model_init_kwargs"] or {})
    head = DepthHeadConfig(**kwargs.pop("depth_config", {}))
    config = DepthVLMConfig(**kwargs)
    found = values | {key: getattr(head, key) for key in ("head_type", "feature_source")}
    found["canonical_focal_length"] = config.canonical_focal_length
    for key, value in (OURS | differs).items():
        assert found[key] == value, key


@pytest.mark.parametrize("recipe", ["stage1.yaml", "stage2.yaml", "stage2_mixed.yaml"])
def test_the_options_for_8b_keep_the_global_batch(recipe):
    text = (REPOSITORY / "training" / "recipes" / recipe).read_text()
    comments = " ".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    options = comments[comments.index("--per_device_train_batch_size") :].split()[:4]
    assert [options[0], options[2]] == ["--per_device_train_batch_size", "--gradient_accumulation_steps"]
    _, for_4b, _, _ = parse(recipe)
    _, for_8b, _, _ = parse(recipe, *options)
    assert for_8b.per_device_train_batch_size < for_4b.per_device_train_batch_size
    assert for_8b.train_batch_size * for_8b.gradient_accumulation_steps == (
        for_4b.train_batch_size * for_4b.gradient_accumulation_steps
    )


def test_the_mixture_states_its_share_of_general_rows():
    _, training, _, data = parse("stage2_mixed.yaml")
    assert [dataset.fraction for dataset in data.datasets] == [0.7, 0.3]
    assert training.shuffle_dataset
    assert (training.eval_strategy, data.test_split_size) == ("steps", 0.002)  # or the probe would never run
    assert training.text_probe


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_lora_reaches_the_linear_layers_of_the_llm_alone(family):
    _, training, model, _ = parse("lora_1gpu.yaml")
    assert model.use_peft
    assert training.trainable is None
    network = on_meta(family)
    llm = network.model.language_model.layers
    gates = ("gate", "shared_expert_gate")  # routers
    expected = {
        f"base_model.model.model.language_model.layers.{name}"
        for name, module in llm.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] not in gates
    }
    adapted = get_peft_model(network, get_peft_config(model))
    reached = {name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    assert reached == expected
    assert len(reached) >= 4 * 4


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nano_runs_on_a_cpu_stage_after_stage_in_batches_of_one_image_size(stage):
    path = REPOSITORY / "training" / "recipes" / f"nano_stage{stage}.yaml"
    script, training, _, _ = parse(path.name)
    keys = yaml.safe_load(path.read_text())
    assert keys["use_cpu"] is True
    assert keys["output_dir"] == f"outputs/nano/stage{stage}"
    assert keys["model_name_or_path"] == "outputs/nano/" + ("init", "stage0", "stage1", "stage2")[stage]
    data = keys["dataset_generator_kwargs"]
    assert data["scenes"] == training.max_steps * 24
    assert training.per_device_train_batch_size * 2 == data["group"] == 24
    rows = generate(script.dataset_generator, script, "train")
    assert isinstance(rows, IterableDataset)
    # Every process gets a run of shards (`IterableDataset.shard`, as accelerate calls it) and reads them in order.
    parts = [rows.shard(num_shards=2, index=rank).take(12) for rank in range(2)]
    grids = {processed_grid(row) for part in parts for row in part}
    assert len(grids) == 1


def processed_grid(row: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of visual tokens at nano's canonical focal length of 160 px; a token is 32 px wide."""
    width, height = row["images"][0].size
    scale = 160 / row["focal_length"] / 32
    return round(height * scale), round(width * scale)


def test_the_launcher_of_the_cpu_starts_two_processes():
    config = load_config_from_file(str(REPOSITORY / "training" / "accelerate" / "cpu.yaml"))
    assert (config.num_processes, config.mixed_precision, config.distributed_type.value) == (2, "no", "MULTI_GPU")


@pytest.mark.parametrize("launcher", [path for path in LAUNCHERS if path.stem != "cpu"], ids=lambda path: path.stem)
def test_accelerate_reads_the_launchers(launcher):
    config = load_config_from_file(str(launcher))
    assert config.mixed_precision == "bf16"
    nodes = 10 if launcher.stem == "fsdp2_10nodes" else 1
    assert (config.num_machines, config.num_processes) == (nodes, 8 * nodes)
    kind = {"multi_gpu": "MULTI_GPU", "zero3": "DEEPSPEED"}.get(launcher.stem, "FSDP")
    assert config.distributed_type.value == kind
    known = set(launch_command_parser()._option_string_actions)
    assert {f"--{key}" for key in config.fsdp_config} <= known
    assert {f"--{key}" for key in config.deepspeed_config} <= known


@pytest.mark.parametrize("launcher", [path for path in LAUNCHERS if "fsdp" in path.stem], ids=lambda path: path.stem)
def test_fsdp_finds_the_layers_of_any_family_by_itself(launcher):
    config = load_config_from_file(str(launcher)).fsdp_config
    assert config["fsdp_version"] == 2
    assert config["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert "fsdp_transformer_layer_cls_to_wrap" not in config  # or it would look for one family's classes in another's
    sharded = Path(launcher).stem == "fsdp2_10nodes"
    assert config["fsdp_state_dict_type"] == ("SHARDED_STATE_DICT" if sharded else "FULL_STATE_DICT")


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_fsdp_wraps_the_layers_of_llm_and_vit(family):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    network = on_meta(family)
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, network)
    wrapped = {name for name, module in network.named_modules() if wraps(module)}
    expected = {f"model.language_model.layers.{i}" for i in range(4)} | {f"model.visual.blocks.{i}" for i in range(8)}
    assert wrapped == expected
