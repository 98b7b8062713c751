"""In TRL's own uses, with models that have no depth head, it is `SFTTrainer`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from toy_tokenizer import build_toy_tokenizer
from toy_training import settings, toy_dataset, toy_row
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from depthvlm import DepthSFTConfig, DepthSFTTrainer

TEXTS = ["a small blue car", "two red balls and a box", "the far door", "one green pole near the wall"] * 2


def model(tokenizer: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return Qwen2ForCausalLM(config)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "What is there?"}, {"role": "assistant", "content": text}]


DATA = {
    "text": Dataset.from_dict({"text": TEXTS}),
    "messages": Dataset.from_dict({"messages": [chat(t) for t in TEXTS]}),
    "prompt and completion": Dataset.from_dict({"prompt": ["There is "] * 8, "completion": TEXTS}),
}


@pytest.mark.parametrize("kind", list(DATA))
@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 32}, {"peft": True}], ids=str)
def test_losses_metrics_and_weights(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    if options.get("packing") and kind == "prompt and completion":
        options = {**options, "eval_packing": False}
    options = dict(options)
    peft = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if options.pop("peft", False) else None
    tokenizer = build_toy_tokenizer()
    results = []
    for trainer_class in (SFTTrainer, DepthSFTTrainer):
        args = SFTConfig(
            str(tmp_path / trainer_class.__name__),
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_steps=2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            per_device_train_batch_size=2,
            **options,
        )
        trainer = trainer_class(
            model(tokenizer),
            args,
            train_dataset=DATA[kind],
            eval_dataset=DatasetDict({"one": DATA[kind], "two": DATA[kind]}),
            processing_class=tokenizer,
            peft_config=peft,
        )
        trainer.train()
        logs = [
            {k: v for k, v in log.items() if not k.endswith(("runtime", "per_second"))}
            for log in trainer.state.log_history
        ]
        results.append((logs, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}))
    (their_logs, theirs), (our_logs, ours) = results
    assert our_logs == their_logs
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_trl_refuses_it_refuses(tmp_path: Path) -> None:
    tokenizer = build_toy_tokenizer()
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        DepthSFTTrainer(model(tokenizer), args, processing_class=tokenizer)
    with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`"):
        DepthSFTTrainer(model(tokenizer), args, train_dataset=DatasetDict(DATA), processing_class=tokenizer)


def test_packing_without_a_length_packs_to_trls(tmp_path: Path) -> None:
    tokenizer = build_toy_tokenizer()
    args = DepthSFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", packing=True)
    trainer = DepthSFTTrainer(model(tokenizer), args, train_dataset=DATA["text"], processing_class=tokenizer)
    assert (args.max_length, trainer.args.max_length) == (None, 1024)
    assert sum(map(len, trainer.train_dataset["seq_lengths"])) == len(TEXTS)


REMOTE = """
from transformers import Qwen2Config, Qwen2ForCausalLM


class FarConfig(Qwen2Config):
    model_type = "far_qwen2"


class FarForCausalLM(Qwen2ForCausalLM):
    config_class = FarConfig
"""


def test_remote_code_is_trusted_where_the_model_is_told_so(tmp_path: Path) -> None:
    tokenizer, folder = build_toy_tokenizer(), tmp_path / "far"
    model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "far.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "far_qwen2", "architectures": ["FarForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "far.FarConfig", "AutoModelForCausalLM": "far.FarForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    options: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none"}
    given = {"train_dataset": DATA["text"], "processing_class": tokenizer}
    with pytest.raises(ValueError, match="custom code"):
        DepthSFTTrainer(str(folder), SFTConfig(str(tmp_path), **options), **given)
    args = SFTConfig(str(tmp_path), model_init_kwargs={"trust_remote_code": True}, **options)
    assert type(DepthSFTTrainer(str(folder), args, **given).model).__name__ == "FarForCausalLM"


def test_the_bundled_model_is_trained_by_its_name_and_predicts_as_it_stands(tmp_path):
    """Not moved by a learning rate of 0, it gives the bundled model's metres, and is in training mode as before."""
    import depthvlm

    rows = toy_dataset([toy_row(index) for index in range(4)])
    trainer = DepthSFTTrainer("depthvlm-nano", settings(tmp_path, learning_rate=0.0), train_dataset=rows)
    trainer.train()
    photo = rows[0]["images"][0]
    [there] = depthvlm.predict(photo, "depthvlm-nano", fov=60.0)
    [here] = depthvlm.predict(photo, trainer.model, fov=60.0)
    assert (here.depth == there.depth).all()
    assert trainer.model.training
