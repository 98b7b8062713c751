"""
Which three layers of a ViT without DeepStack the depth head should read, and through whose projector: nano's answer.

    python scripts/nano/compare_vision_levels.py outputs/vision_levels

nano becomes a Qwen3.5 with the same weights, which has no DeepStack. Its outputs are kept once for every scene; then a
new head is trained on them for each choice and seed, as stage 1 trains it. What is in the folder is not made again:
after an interruption, or with more seeds, run the command once more. Writes `vision_levels.md` and `.png` there.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from depthvlm.benchmark.scoring.metrics import ErrorSums
from depthvlm.benchmark.scoring.statistics import Interval, bootstrap_interval, paired_bootstrap
from depthvlm.benchmark.synthetic import HELD_OUT, SyntheticScene, draw_scene, render_scene
from depthvlm.modeling_depthvlm.configuration_depthvlm import DepthHeadConfig
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import DepthHead, build_depth_head, init_head_layer
from depthvlm.modeling_depthvlm.losses_depthvlm import resize_depth, silog_loss
from depthvlm.modeling_depthvlm.modeling_depthvlm import run_depth_head, token_grids
from depthvlm.modeling_depthvlm.qwen3_5_depthvlm import DepthVLMQwen3_5Config, DepthVLMQwen3_5ForConditionalGeneration
from depthvlm.processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT
from depthvlm.training.optimizer import MuonFactory
from rich.progress import track
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from depthvlm import load
from depthvlm.files import atomic_write, read_json, write_json, write_text

BATCH = 6  # scenes of a step, and of a file
# Those of training/recipes/nano_stage1.yaml: the first scene, scenes of one size in a row, and the optimiser.
FIRST_SEED = 120_000_000
GROUP = 24
MUON = {"muon_learning_rate": 0.02, "learning_rate": 1.5e-3, "weight_decay": 0.01, "betas": (0.9, 0.98), "eps": 1e-8}
WARMUP = 0.04
METRICS = ("delta1", "abs_rel", "silog")
DEFAULT = "quarters, shared"


@dataclass(frozen=True)
class Choice:
    """What the head reads: three layers of the ViT through a projector, or one of the references."""

    source: str = "vit+llm"
    layers: tuple[int, ...] = ()
    projector: str = "shared"
    deepstack: bool = False


def layer_choices(depth: int, default: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the sets of three layers that are compared, for a ViT of `depth` layers."""
    thirds = [round(depth * (layer + 1) / 27) - 1 for layer in (8, 16, 24)]  # DeepStack's in Qwen3-VL-8B
    chosen = {
        "quarters": tuple(default),
        "thirds": tuple(thirds),
        "every second": (0, 2, 4),
        "first three": (0, 1, 2),
        "mostly early": (0, 1, depth // 2),
        "last three": tuple(range(depth - 3, depth)),
    }
    return {name: layers for name, layers in chosen.items() if layers[-1] < depth}


def all_choices(depth: int, default: Sequence[int]) -> dict[str, Choice]:
    """Return everything that is compared, by name."""
    choices = {
        f"{name}, {projector}": Choice(layers=layers, projector=projector)
        for name, layers in layer_choices(depth, default).items()
        for projector in ("shared", "own")
    }
    choices["ViT alone, quarters, shared"] = Choice("vit", tuple(default))
    choices["LLM alone"] = Choice("llm")
    choices["nano's DeepStack"] = Choice(deepstack=True)
    return choices


def without_deepstack(nano: Any) -> DepthVLMQwen3_5ForConditionalGeneration:
    """Return a Qwen3.5 with nano's weights, all but those of DeepStack and of the depth head.

    Words alone are those of nano: all layers attend fully, rotate whole heads as nano's do, and their gates, which
    nano lacks, are one half, for which the output projection makes up. What DeepStack adds to the first LLM layers at
    image tokens is missing.
    """
    old = nano.config
    text, vision = old.text_config.to_dict(), old.vision_config.to_dict()
    for settings in (text, vision):
        settings.pop("model_type")
    vision.pop("deepstack_visual_indexes")
    text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]
    text["rope_parameters"] = text["rope_parameters"] | {"partial_rotary_factor": 1.0}
    tokens = {name: getattr(old, name) for name in vars(old) if name.endswith("_token_id")}
    config = DepthVLMQwen3_5Config(
        text_config=text,
        vision_config=vision,
        depth_config={"feature_source": "llm", **head_widths(old.head)},
        canonical_focal_length=old.canonical_focal_length,
        depth_prompt_ids=old.depth_prompt_ids,
        tie_word_embeddings=old.tie_word_embeddings,
        **tokens,
    )
    model = DepthVLMQwen3_5ForConditionalGeneration(config)
    kept = {
        name: convert_weight(name, weight.float(), old.text_config.head_dim)
        for name, weight in nano.state_dict().items()
        if "deepstack" not in name and not name.startswith("depth_head.")
    }
    missing, unexpected = model.load_state_dict(kept, strict=False)
    if unexpected or not all(name.startswith("depth_head.") for name in missing):
        raise ValueError(f"nano's weights do not fit Qwen3.5: missing {missing}, unexpected {unexpected}.")
    return model.eval().requires_grad_(False)


def convert_weight(name: str, weight: Tensor, head_dim: int) -> Tensor:
    """Return a weight of Qwen3-VL as Qwen3.5 has it."""
    if ".language_model." not in name:
        return weight
    if name.endswith("norm.weight"):
        return weight - 1  # Qwen3.5's norms multiply by one more than their weight
    if name.endswith("q_proj.weight"):  # of every head the queries, then the gates
        queries = weight.unflatten(0, (-1, head_dim))
        return torch.cat([queries, torch.zeros_like(queries)], dim=1).flatten(0, 1)
    return 2 * weight if name.endswith("o_proj.weight") else weight


def head_widths(head: DepthHeadConfig) -> dict[str, Any]:
    """Return the fields of nano's head that every head here has."""
    return {"features": head.features, "out_channels": list(head.out_channels)}


class Backbones:
    """nano and its double without DeepStack, frozen.

    Args:
        checkpoint: nano by default.
    """

    def __init__(self, checkpoint: str | None = None):
        network = load(checkpoint, dtype="float32")
        self.nano, self.processor = network.model.requires_grad_(False), network.processor
        self.model = without_deepstack(self.nano)
        self.config = self.model.config
        self.layers = list(range(self.config.vision.depth))

    def inputs(self, scenes: Sequence[SyntheticScene]) -> Any:
        """Return the model's inputs for scenes, with the method's prompt."""
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": DEPTH_PROMPT}]}
        turns = [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}, user]
        text = self.processor.apply_chat_template(turns, tokenize=False)
        return self.processor(
            text=[text] * len(scenes),
            images=[scene.image for scene in scenes],
            focal_length=[scene.focal_length for scene in scenes],
            padding=True,
            return_tensors="pt",
        )

    @torch.no_grad()
    def states(self, scenes: Sequence[SyntheticScene]) -> dict[str, Tensor]:
        """Return all that any head reads of these scenes, and their depth.

        Returns:
            `patches`, `(layers, patches, width)`, every ViT layer; `levels`, `(layers, tokens, hidden_size)`, the same
            through the shared projector; `llm`, `(4, tokens, hidden_size)`, the maps of `feature_source="llm"`;
            `deepstack`, nano's own four maps; `grid_thw`, `focal_scale`; `depth` of all scenes one after the other, and
            `sizes`.
        """
        inputs, backbone, vision = self.inputs(scenes), self.config.backbone, self.config.vision
        grid_thw = inputs["image_grid_thw"]
        encoded = self.model.get_image_features(
            inputs["pixel_values"], grid_thw, return_dict=True, **backbone.vision_options(self.layers)
        )
        patches = backbone.vision_levels(encoded, self.layers, vision)
        levels = [backbone.project(self.model.model.visual, states, grid_thw, vision) for states in patches]
        maps = {
            name: torch.cat([one.maps.flatten(1, 2) for one in model.depth_features(**inputs)], dim=1)
            for name, model in (("llm", self.model), ("deepstack", self.nano))
        }
        return maps | {
            "patches": torch.stack(patches),
            "levels": torch.stack(levels),
            "grid_thw": grid_thw,
            "focal_scale": inputs["focal_scale"],
            "depth": torch.cat([torch.from_numpy(scene.depth).float().flatten() for scene in scenes]),
            "sizes": torch.tensor([scene.depth.shape for scene in scenes]),
        }

    def new_head(self, choice: Choice, seed: int) -> DepthHead:
        """Return an untrained head; heads of one seed begin alike, whatever they read."""
        fields = head_widths(self.config.head) | {"feature_source": choice.source, "projector": choice.projector}
        torch.manual_seed(seed)
        head = build_depth_head(DepthHeadConfig(**fields), self.config.text.hidden_size, self.config.input_stride)
        head.apply(init_head_layer)
        if choice.projector == "own":
            head.projectors.extend(self.config.backbone.copy_projector(self.model.model.visual) for _ in choice.layers)
        return head.requires_grad_(True)

    def predict(self, head: DepthHead, choice: Choice, states: dict[str, Tensor]) -> list[Tensor]:
        """Return the depth of every scene by `head`, from what [`states`] returned."""
        grid_thw = states["grid_thw"]
        if choice.deepstack:
            maps = list(states["deepstack"])
        elif choice.source == "llm":
            maps = list(states["llm"])
        else:
            maps = [states["levels"][layer] for layer in choice.layers]
            if head.projectors:
                phi, vision = self.config.backbone.project, self.config.vision
                maps = [
                    phi(projector, states["patches"][layer], grid_thw, vision)
                    for projector, layer in zip(head.projectors, choice.layers, strict=True)
                ]
            maps.append(states["levels"][-1] if choice.source == "vit" else states["llm"][-1])
        grids = token_grids(grid_thw.tolist(), self.config.vision.spatial_merge_size)
        tokens = [height * width for height, width in grids]
        return run_depth_head(head, [one.split(tokens) for one in maps], grids, states["focal_scale"])


def true_depth(states: dict[str, Tensor]) -> list[Tensor]:
    """Return the depth of every scene, `(height, width)` in metres."""
    sizes = states["sizes"].tolist()
    parts = states["depth"].split([height * width for height, width in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


def keep(file: Path, backbones: Backbones, scenes: Iterable[SyntheticScene]) -> None:
    """Write the states of scenes to a file."""
    with atomic_write(file) as stream:
        stream.write(save({name: t.contiguous() for name, t in backbones.states(list(scenes)).items()}))


def training_files(folder: Path, backbones: Backbones, scenes: int) -> list[Path]:
    """Return files of the states of so many scenes of stage 1, a batch each; make those that are missing."""
    focal_length = backbones.config.canonical_focal_length
    files = [folder / f"train_{FIRST_SEED + first}.safetensors" for first in range(0, scenes, BATCH)]
    for number, file in enumerate(track(files, description="training scenes")):
        if not file.exists():
            first = FIRST_SEED + number * BATCH
            keep(file, backbones, (draw_scene(first + i, focal_length, GROUP) for i in range(BATCH)))
    return files


def held_out_files(folder: Path, backbones: Backbones, scenes: int) -> dict[str, list[Path]]:
    """Return files of the states of so many held-out rooms, and as many streets; make those that are missing."""
    files: dict[str, list[Path]] = {"room": [], "street": []}
    for kind, some in files.items():
        for first in track(range(0, scenes, BATCH), description=f"held-out {kind}s"):
            some.append(folder / f"{kind}_{HELD_OUT + first}.safetensors")
            if not some[-1].exists():
                seeds = range(HELD_OUT + first, HELD_OUT + first + BATCH)
                keep(some[-1], backbones, (render_scene(seed, kind=kind) for seed in seeds))  # type: ignore[arg-type]
    return files


def train(
    backbones: Backbones, choice: Choice, seed: int, files: Sequence[Path], steps: int
) -> tuple[DepthHead, list[float]]:
    """Train a head as stage 1 does, on every file once before any comes again; return it and the loss of every step."""
    head = backbones.new_head(choice, seed)
    optimizer = MuonFactory()(head, **MUON)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
    rng, losses = np.random.default_rng(seed), []
    order: list[int] = []
    for _ in range(steps):
        order = order or rng.permutation(len(files)).tolist()
        states = load_file(files[order.pop()])
        loss = silog_loss(backbones.predict(head, choice, states), true_depth(states), 0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return head, losses


@torch.no_grad()
def score(
    backbones: Backbones, head: DepthHead, choice: Choice, files: dict[str, list[Path]]
) -> dict[str, dict[str, float]]:
    """Return delta1, AbsRel and SILog (equation 4) of every held-out image."""
    scores: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    for kind, some in files.items():
        for file in some:
            states = load_file(file)
            pairs = zip(backbones.predict(head, choice, states), true_depth(states), strict=True)
            for number, (depth, truth) in enumerate(pairs):
                metres = resize_depth(depth[None], (truth.shape[0], truth.shape[1]))[0]
                sums = ErrorSums.of(metres.numpy(), truth.numpy())
                values = sums.metrics() | {"silog": sums.silog(0.5)}
                for metric in METRICS:
                    scores[metric][f"{kind}/{file.stem}/{number}"] = values[metric]
    return scores


def mean_over_seeds(runs: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    """Return the mean score of every image over runs of one choice."""
    images = runs[0]["scores"][metric]
    return {image: float(np.mean([run["scores"][metric][image] for run in runs])) for image in images}


def strata(images: Iterable[str]) -> dict[str, str]:
    """Return "room" or "street" for every image."""
    return {image: image.split("/")[0] for image in images}


def interval(values: dict[str, float]) -> Interval:
    """Return the mean over images with its 95 % interval."""
    return bootstrap_interval(values, strata=strata(values))


def as_table(runs: dict[str, list[dict[str, Any]]], choices: dict[str, Choice]) -> str:
    """Return the results as a table in Markdown, one choice a row."""
    lines = [
        "| the head reads | ViT layers | seeds | delta1 | of each seed | AbsRel | SILog | delta1 less the default's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, some in runs.items():
        found = {metric: interval(mean_over_seeds(some, metric)) for metric in METRICS}
        cells = [f"{one.estimate:.3f} ({one.low:.3f} to {one.high:.3f})" for one in found.values()]
        seeds = ", ".join(f"{np.mean(list(run['scores']['delta1'].values())):.3f}" for run in some)
        less = "–"
        if name != DEFAULT:
            # A seed decides on the order of scenes and the head's first weights: the same seeds on both sides.
            own, other = some[: len(runs[DEFAULT])], runs[DEFAULT][: len(some)]
            default = mean_over_seeds(other, "delta1")
            one = paired_bootstrap(mean_over_seeds(own, "delta1"), default, strata=strata(default))
            less = f"{one.estimate:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
        layers = ", ".join(map(str, choices[name].layers)) or "–"
        lines.append(f"| {name} | {layers} | {len(some)} | {cells[0]} | {seeds} | {cells[1]} | {cells[2]} | {less} |")
    return "\n".join(lines) + "\n"


def own_less_shared(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return what own projectors change, a set of layers a row, paired by image and seed."""
    lines = ["| own less shared | delta1 | AbsRel | SILog |", "|---|---|---|---|"]
    for name, own in runs.items():
        layers, _, projector = name.rpartition(", ")
        shared = runs.get(f"{layers}, shared", [])
        if projector != "own" or not shared:
            continue
        cells, seeds = [], min(len(own), len(shared))
        for metric in METRICS:
            other = mean_over_seeds(shared[:seeds], metric)
            one = paired_bootstrap(mean_over_seeds(own[:seeds], metric), other, strata=strata(other))
            cells.append(f"{one.estimate:+.3f} ({one.low:+.3f} to {one.high:+.3f})")
        lines.append(f"| {layers} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draw delta1 of every choice with its interval, and that of each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.32 * len(runs) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, (name, some) in enumerate(runs.items()):
        found = interval(mean_over_seeds(some, "delta1"))
        color = "tab:orange" if name.endswith("own") else "tab:blue" if "," in name else "tab:gray"
        axes.plot([found.low, found.high], [row, row], color=color, linewidth=2)
        axes.plot(found.estimate, row, "o", color=color)
        axes.plot([np.mean(list(run["scores"]["delta1"].values())) for run in some], [row] * len(some), "k|")
    axes.set_yticks(range(len(runs)), list(runs))
    axes.invert_yaxis()
    axes.set_xlabel("delta1 on held-out scenes; line: 95 % over images, ticks: seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=120)


def main(
    out: Annotated[Path, typer.Argument(help="Folder of what was made, and of the results.")],
    scenes: Annotated[int, typer.Option(help="Training scenes, a multiple of 6.")] = 480,
    held_out: Annotated[int, typer.Option(help="Held-out scenes of each kind, a multiple of 6.")] = 120,
    steps: Annotated[int, typer.Option(help="Training steps of 6 scenes.")] = 80,
    seeds: Annotated[int, typer.Option(help="Heads trained for each choice.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Train these choices alone, by parts of their names.")] = None,
) -> None:
    """Train and score a head for each choice and seed that is not done yet, then write the table and the figure."""
    torch.set_num_threads(1)
    backbones = Backbones()
    choices = all_choices(len(backbones.layers), backbones.config.backbone.default_layers(backbones.config.vision))
    kept, results = out / "states", out / f"runs_{scenes}_{steps}_{held_out}"
    for folder in (kept, results):
        folder.mkdir(parents=True, exist_ok=True)
    files, tests = training_files(kept, backbones, scenes), held_out_files(kept, backbones, held_out)
    done: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for number, (name, choice) in enumerate(choices.items()):
            file = results / f"{number:02d}_{seed}.json"
            if not file.exists() and (only is None or any(part in name for part in only)):
                begin = time.process_time()
                head, losses = train(backbones, choice, seed, files, steps)
                scores = score(backbones, head, choice, tests)
                seconds = time.process_time() - begin
                write_json(file, {"choice": name, "seed": seed, "s": seconds, "losses": losses, "scores": scores})
                print(f"{name}, seed {seed}: delta1 {np.mean(list(scores['delta1'].values())):.4f}, {seconds:.0f} s")
            if file.exists():
                done.setdefault(name, []).append(read_json(file))
    ordered = {name: done[name] for name in choices if name in done}
    if DEFAULT in ordered:
        write_text(out / "vision_levels.md", as_table(ordered, choices) + "\n" + own_less_shared(ordered))
        draw(ordered, out / "vision_levels.png")
        print((out / "vision_levels.md").read_text())
    print(json.dumps({name: [round(run["s"]) for run in some] for name, some in ordered.items()}))


if __name__ == "__main__":
    typer.run(main)
