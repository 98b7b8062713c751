"""The model card of a checkpoint: what its files say, the results that are its own, and what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...modeling_depthvlm.backbones_depthvlm import own_family
from ...recipe_file import RECIPE_FILE, Stage, data_of, is_hub_name, sources_of
from .card_text import CITATION, CODE_LICENCE, PAPER, TAGS, check_repo_id, licence_table, table, template, terms_of
from .model_facts import (
    TASK,
    ModelFacts,
    conditions_of,
    eval_results,
    protocols_of,
    read_facts,
    read_results,
    results_table,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from ...benchmark.scoring.results import Result

# Licences of backbones by how their names on the Hub begin, as their cards say.
_BASE_LICENCES = {
    "Qwen/Qwen3-VL-": "apache-2.0",
    "Qwen/Qwen3.5-": "apache-2.0",
    "Qwen/Qwen2.5-VL-7B-": "apache-2.0",
    "Qwen/Qwen2.5-VL-32B-": "apache-2.0",
    "zai-org/GLM-4.1V-": "mit",
    "zai-org/GLM-4.6V": "mit",
}
_LABELS = {
    "converted_by": "converted by",
    "backbone": "backbone",
    "trained": "trained parts",
    "adapter": "adapter",
    "loss": "loss",
    "data": "data",
    "steps": "steps",
    "epochs": "epochs",
    "global_batch_size": "batch",
    "device": "device",
    "settings": "settings",
}
_PART_NAMES = {"head": "depth head", "llm": "language model", "merger": "ViT's mergers", "vit": "ViT"}


def make_model_card(
    checkpoint: str | Path,
    repo_id: str | None,
    results: Sequence[str | Path] = (),
    **given: Any,
) -> ModelCard:
    """Return the card of a checkpoint. It shows no scores but those in `results`.

    Args:
        checkpoint: Folder that `save_pretrained` or `depthvlm sft` wrote: whole weights, or a PEFT adapter.
        repo_id: Owner/name on the Hub; None where it is not known yet.
        results: Files of `depthvlm bench eval`, all of this checkpoint. Results on part of a set are marked and
            stay out of the metadata.
        **given: Keywords of [`render_model_card`], for what no file says.

    Raises:
        FileNotFoundError: The folder, its configuration, its weights or a result file is missing.
        ValueError: A file is damaged, the checkpoint is not a DepthVLM, a result belongs to another model or is given
            twice, or `repo_id` is not a name on the Hub.
    """
    checkpoint = Path(checkpoint)
    facts = read_facts(checkpoint)
    measured = read_results([Path(file) for file in results], checkpoint)
    title = (repo_id or checkpoint.resolve().name).split("/")[-1]
    return render_model_card(facts, repo_id, title, measured, **given)


def render_model_card(
    facts: ModelFacts,
    repo_id: str | None,
    title: str,
    results: Sequence[Result] = (),
    *,
    language: Sequence[str] = ("en",),
    license: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    note: str = "",
) -> ModelCard:
    """Return the card of facts and results that were checked before.

    Args:
        facts: Facts of the checkpoint.
        repo_id: Owner/name on the Hub; None where it is not known yet.
        title: Title of the card.
        results: Results of this checkpoint.
        language: Codes of the languages.
        license: Licence of the weights, a key of the Hub such as "apache-2.0"; by default stated only where it is
            known.
        datasets: Names on the Hub, besides those in the recipe.
        tags: Tags besides the usual ones.
        note: A paragraph in Markdown that goes under the title.

    Raises:
        ValueError: `repo_id` is not a name on the Hub.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from ... import __version__

    check_repo_id(repo_id)
    sources = sources_of(facts.stages)
    license = license or _known_licence(facts)
    hub_data = [name for name in data_of(facts.stages) if is_hub_name(name)]
    data = ModelCardData(
        language=list(language),
        license=license or "other",
        license_name=None if license else "base-model-and-training-data",
        license_link=f"https://huggingface.co/{repo_id}#licences" if not license and repo_id else None,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag=TASK,
        base_model=facts.base_model,
        datasets=list(dict.fromkeys([*hub_data, *datasets])) or None,
        metrics=["depth_metrics"] if results else None,
        tags=[*TAGS, "image-text-to-text", *(["lora"] if facts.adapter else []), *tags],
        eval_results=eval_results(results) or None,
        model_name=title if any(result.complete for result in results) else None,
    )
    if facts.base_model:
        data["base_model_relation"] = "adapter" if facts.adapter else "finetune"
    base = facts.base_model
    return ModelCard.from_template(
        data,
        template_path=template("model_card"),
        title=title,
        name=repo_id or title,
        paper=PAPER,
        note=note.strip(),
        adapter=facts.adapter,
        base_link=f"[{base}](https://huggingface.co/{base})" if base else "",
        head_note=facts.seen,
        canonical=_number(facts.canonical_focal_length),
        assumed_fov=_number(facts.image_processor.get("assumed_fov")),
        max_pixels=_number((facts.image_processor.get("size") or {}).get("longest_edge")),
        results_table=results_table(results) if results else "",
        checkpoint_hash=results[0].checkpoint if results else "",
        partial=any(not result.complete for result in results),
        protocols=protocols_of(results),
        conditions=conditions_of(results),
        recipe_file=RECIPE_FILE,
        stages=[_stage(stage, index, len(facts.stages)) for index, stage in enumerate(facts.stages)],
        made_of=_made_of(facts),
        environment=_versions(facts.stages[-1].get("versions", {})) if facts.stages else "",
        version=__version__,
        code_licence=CODE_LICENCE,
        weights_licence=_weights_licence(facts, license),
        data_licence=_data_licence(facts, sources),
        source_table=licence_table(sources) if sources else "",
        citation=CITATION,
    )


def _known_licence(facts: ModelFacts) -> str | None:
    """Return the weights' licence where only a base and data under that one are in them, else None."""
    base = facts.base_model or ""
    licence = next((known for start, known in _BASE_LICENCES.items() if base.startswith(start)), None)
    if licence is None:
        return None
    if not facts.stages:
        return licence if facts.head == "untrained" else None
    for stage in _runs(facts):
        sources = stage.get("data", {}).get("sources", {})
        rows = stage.get("data", {}).get("rows")
        if not sources or sum(sources.values()) != rows or any(terms_of(s).spdx != licence for s in sources):
            return None
    return licence


def _weights_licence(facts: ModelFacts, license: str | None) -> str:
    if license:
        return f"{license}."
    base = f"{facts.base_model}, whose licence goes on" if facts.base_model else "a base model that is not recorded"
    return f"no licence is recorded. They derive from {base}, and from the data below, whose terms may bind them too."


def _data_licence(facts: ModelFacts, sources: Sequence[str]) -> str:
    if sources:
        return "rows of these sources, each under its own terms:"
    names = data_of(facts.stages)
    if names:
        return f"{', '.join(names)}; see the terms of each."
    return "the names of the training data are not recorded." if _runs(facts) else "no training is recorded."


def _runs(facts: ModelFacts) -> list[Stage]:
    """Return the stages in which something was trained: a conversion is not one."""
    return [stage for stage in facts.stages if stage.get("trained")]


def _stage(stage: Stage, index: int, count: int) -> dict[str, str]:
    title = "Conversion" if "converted_by" in stage else f"Step {index + 1} of {count}"
    base = stage.get("base_model")
    before = "the step before" if index else "a model whose name is not recorded"
    started = f"{base}, revision {stage['base_revision']}" if stage.get("base_revision") else base or before
    rows = [["started from", str(started)]]
    for key, label in _LABELS.items():
        if stage.get(key) is not None:
            rows.append([label, _cell(key, stage[key], stage)])
    return {"title": title, "table": table(["", ""], rows)}


def _cell(key: str, value: Any, stage: Stage) -> str:
    if key == "trained":
        return ", ".join(_PART_NAMES.get(part, part) for part in value) or "none"
    if key == "data":
        return _data(value)
    if key == "global_batch_size":
        names = ("per_device_batch_size", "gradient_accumulation_steps", "world_size")
        micro, accumulation, ranks = (stage.get(name, "?") for name in names)
        return f"{value} = {micro} x {accumulation} accumulated x {ranks} ranks"
    if key == "device":
        return f"{stage.get('world_size', '?')} x {value}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    return _plain(value)


def _data(data: Mapping[str, Any]) -> str:
    parts = [", ".join(data.get("names") or ["name not recorded"])]
    if data.get("rows") is not None:
        parts.append(f"{data['rows']} rows")
    if data.get("sources"):
        parts.append(", ".join(f"{source} {count}" for source, count in data["sources"].items()))
    return "; ".join(parts)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _made_of(facts: ModelFacts) -> str:
    head, family = facts.config.get("depth_config") or {}, own_family(facts.config.get("model_type"))
    rows = [] if family is None else [["backbone", f"`{family.config.backbone.model_type}`"]]
    rows += [[part, f"{count:,} parameters"] for part, count in facts.parameters.items()]
    if head:
        rows.append(["head type", f"`{head.get('head_type')}`, features from `{head.get('feature_source')}`"])
    if facts.canonical_focal_length:
        rows.append(["canonical focal length", f"{_number(facts.canonical_focal_length)} px"])
    if facts.dtypes:
        rows.append(["stored as", ", ".join(facts.dtypes)])
    return table(["", ""], rows) if rows else "Not counted."


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _number(value: Any) -> str:
    """Return a number without a useless ".0"; "" for None."""
    return "" if value is None else f"{value:g}" if float(value) != int(value) else str(int(value))
