"""The card of a build of DepthVLM-Bench: configurations that load without a script, splits, and the sources' terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .card_text import (
    CITATION,
    CODE_LICENCE,
    PAPER,
    TAGS,
    check_repo_id,
    closed_sources,
    licence_table,
    table,
    template,
    terms_of,
)

if TYPE_CHECKING:
    from datasets import DatasetInfo
    from huggingface_hub import DatasetCard

Entry: TypeAlias = Mapping[str, Any]
"""One finished build, as the manifest has it."""

DEFAULT = "default"

COLUMNS = {
    "id": "identifier of the image, unique in its source and split",
    "source": "name of the source",
    "split": "train or test",
    "scene": "what neighbouring frames share: a drive, a building, a room",
    "camera": "camera of the rig; empty where there is only one",
    "image": "the file as downloaded",
    "depth": "z-depth: 16-bit PNG, or TIFF of float32; 0 where there is none",
    "depth_scale": "raw value / scale = metres",
    "depth_type": "`z_depth`",
    "depth_range": "least and greatest metres that count as measured",
    "intrinsics": "fx, fy, cx, cy in pixels of the image; the centre of the top left pixel is (0.5, 0.5)",
    "focal_length": "fx, pixels of the image",
    "width": "width of the image, pixels",
    "height": "height of the image, pixels",
    "depth_width": "width of the depth map, pixels",
    "depth_height": "height of the depth map, pixels",
    "points": "column and row in the depth map, and depth in metres",
    "messages": "system text, prompt and constant reply",
}

# Upper ends of the Hub's size categories.
_SIZES = {
    "n<1K": 10**3,
    "1K<n<10K": 10**4,
    "10K<n<100K": 10**5,
    "100K<n<1M": 10**6,
    "1M<n<10M": 10**7,
    "10M<n<100M": 10**8,
}
_TABLES = {"train": 9, "test": 10}


def make_dataset_card(build: str | Path, repo_id: str | None) -> DatasetCard:
    """Return the card of a folder that `depthvlm bench build` wrote.

    Its `configs` name the Parquet files of each split, so `load_dataset(repo_id)` needs no script: all sources by
    default, and each alone by its name where there are several.

    Args:
        build: The folder, with one finished build or more.
        repo_id: Owner/name on the Hub; None where it is not known yet.

    Raises:
        FileNotFoundError: There is no such folder.
        BuildError: No build is finished there, its manifest is damaged, or a shard is missing.
        ValueError: `repo_id` is not a name on the Hub.
    """
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard, DatasetCardData

    from ...benchmark.build.records import benchmark_features
    from ...benchmark.build.shards import finished_builds, shard_paths

    check_repo_id(repo_id)
    build = Path(build)
    entries = list(finished_builds(build).values())
    for entry in entries:
        shard_paths(build, entry)
    sources = {entry["source"]: entry for entry in entries}
    titles = ", ".join(entry["title"] for entry in sources.values())
    images = sum(entry["counts"]["rows"] for entry in entries)
    configs = {DEFAULT: entries}
    if len(sources) > 1:
        configs |= {source: [entry for entry in entries if entry["source"] == source] for source in sources}
    licences = {terms_of(source).spdx for source in sources}
    licence = licences.pop() if len(licences) == 1 else None
    data = DatasetCardData(
        pretty_name=f"DepthVLM-Bench: {titles}",
        language=["en"],
        license=licence or "other",
        license_name=None if licence else "terms-of-each-source",
        task_categories=["depth-estimation", "image-text-to-text"],
        size_categories=[next((name for name, end in _SIZES.items() if images < end), "n>1T")],
        source_datasets=["original" if set(sources) == {"synthetic"} else "extended"],
        tags=[*TAGS, "depthvlm-bench"],
        configs=[
            {"config_name": name, "data_files": _data_files(chosen), **({"default": True} if name == DEFAULT else {})}
            for name, chosen in configs.items()
        ],
    )
    DatasetInfosDict({name: _info(chosen) for name, chosen in configs.items()}).to_dataset_card_data(data)
    name = repo_id or build.resolve().name
    features: Mapping[str, Any] = benchmark_features()
    versions = [", ".join(f"{name} {number}" for name, number in entry["versions"].items()) for entry in entries]
    one = next((entry for entry in entries if len(sources) > 1), None)
    return DatasetCard.from_template(
        data,
        template_path=template("dataset_card"),
        title=f"{name.split('/')[-1]}: DepthVLM-Bench, {titles}",
        name=name,
        images=images,
        paper=PAPER,
        closed=", ".join(sources[source]["title"] for source in closed_sources(sources)),
        first_split=next(iter(_by_split(entries))),
        one=one and {"source": one["source"], "split": next(iter(_by_split(configs[one["source"]])))},
        splits=_splits_table(entries),
        omissions="\n".join(_omissions(entries)),
        columns=table(
            ["column", "type", "what it holds"],
            [[f"`{name}`", _type_of(feature), COLUMNS[name]] for name, feature in features.items()],
        ),
        licences=licence_table(sources, sources),
        code_licence=CODE_LICENCE,
        versions="\n".join(f"- {line}" for line in dict.fromkeys(versions)),
        citation=CITATION,
    )


def restricted_sources(build: str | Path) -> tuple[str, ...]:
    """Return the titles of the sources in a build whose terms do not allow a public copy.

    Raises:
        FileNotFoundError, BuildError: See [`make_dataset_card`].
    """
    from ...benchmark.build.shards import finished_builds

    titles = {entry["source"]: str(entry["title"]) for entry in finished_builds(build).values()}
    return tuple(titles[source] for source in closed_sources(titles))


def _by_split(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found = {split: [entry for entry in entries if entry["split"] == split] for split in ("train", "test")}
    return {split: chosen for split, chosen in found.items() if chosen}


def _data_files(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return patterns that match the manifest's shards alone: those of another count are an older build's."""
    return [
        {"split": split, "path": [f"{e['source']}-{split}-*-of-{len(e['shards']):05d}.parquet" for e in chosen]}
        for split, chosen in _by_split(entries).items()
    ]


def _info(entries: Sequence[Entry]) -> DatasetInfo:
    """Return the features and the number of rows of each split, which `load_dataset` then checks."""
    from datasets import DatasetInfo, SplitDict, SplitInfo

    from ...benchmark.build.records import benchmark_features

    splits = SplitDict()
    for split, chosen in _by_split(entries).items():
        rows, bytes_ = (sum(entry["counts"][name] for entry in chosen) for name in ("rows", "bytes"))
        splits.add(SplitInfo(split, num_bytes=bytes_, num_examples=rows))
    size = sum(entry["counts"]["bytes"] for entry in entries)
    return DatasetInfo(features=benchmark_features(), splits=splits, download_size=size, dataset_size=size)


def _splits_table(entries: Sequence[Entry]) -> str:
    from ...benchmark.report.published import published_table

    rows = []
    for entry in entries:
        counts, (low, high), number = entry["counts"], entry["depth_range"], _TABLES[entry["split"]]
        try:
            in_paper = f"{published_table(number).cell('Images', entry['source'])} (table {number})"
        except KeyError:
            in_paper = "not in it"
        rows.append(
            [
                entry["title"],
                entry["split"],
                str(counts["rows"]),
                in_paper,
                str(counts["points"]),
                str(counts["scenes"]),
                "sparse, lidar" if entry["sparse"] else "dense",
                f"{low:g} to {high:g} m",
                str(len(entry["shards"])),
                f"{counts['bytes'] / 1e6:.1f} MB",
            ]
        )
    header = ["source", "split", "images", "in the paper", "points", "scenes", "depth", "valid range", "shards", "size"]
    return table(header, rows)


def _omissions(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        name, counts = f"{entry['title']} {entry['split']}", entry["counts"]
        if counts["bad"]:
            lines.append(f"- {name}: {counts['bad']} frames could not be used; `manifest.json` says which and why.")
        if counts["short_of_points"]:
            lines.append(
                f"- {name}: {counts['short_of_points']} images have fewer valid pixels than points were asked for."
            )
        lines += [f"- {name}: {note}" for note in entry.get("notes", ())]
    return lines


def _type_of(feature: Any) -> str:
    from datasets import Image, List

    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, List):
        return f"list of {_type_of(feature.feature)}"
    if isinstance(feature, dict):
        return "{" + ", ".join(feature) + "}"
    return str(feature.dtype)
