"""The card of a build of DepthVLM-Bench: configurations that load without a script, splits, and the sources' terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .card_text import CITATION, CODE_LICENCE, PAPER, TAGS, check_repo_id, table, template
from .source_terms import closed_sources, licence_table, terms_of

if TYPE_CHECKING:
    from datasets import DatasetInfo
    from huggingface_hub import DatasetCard

Entry: TypeAlias = Mapping[str, Any]
"""One finished build, as the manifest has it."""

DEFAULT = "default"

COLUMNS = {
    "id": "of the image, unique in its source and split",
    "source": "name of the source",
    "split": "train or test",
    "scene": "what neighbouring frames share: a drive, a building, a room",
    "camera": "of the rig; empty where there is one",
    "image": "the file as downloaded",
    "depth": "z-depth: 16-bit PNG, or TIFF of float32; 0 where there is none",
    "depth_scale": "raw value / scale = metres",
    "depth_type": "`z_depth`",
    "depth_range": "least and greatest metres that count as measured",
    "intrinsics": "fx, fy, cx, cy in pixels of the image; the centre of the top left pixel is (0.5, 0.5)",
    "focal_length": "fx, pixels of the image",
    "width": "of the image, pixels",
    "height": "of the image, pixels",
    "depth_width": "of the depth map, pixels",
    "depth_height": "of the depth map, pixels",
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
    """
    The card of a folder that `depthvlm bench build` wrote.

    Its `configs` name the Parquet files of each split, so `load_dataset(repo_id)` needs no script: all sources by
    default, and each alone by its name where there are several.

    Args:
        build: the folder, with one finished build or more.
        repo_id: owner/name on the Hub; None where it is not known yet.

    Raises:
        FileNotFoundError: there is no such folder.
        BuildError: no build is finished there, its manifest is damaged, or a shard is missing.
        ValueError: `repo_id` is no name on the Hub.
    """
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard, DatasetCardData

    from ...benchmark.build.shards import finished_builds, shard_paths

    check_repo_id(repo_id)
    build = Path(build)
    entries = list(finished_builds(build).values())
    for entry in entries:
        shard_paths(build, entry)
    sources = {entry["source"]: entry for entry in entries}
    titles = ", ".join(entry["title"] for entry in sources.values())
    images = sum(entry["counts"]["rows"] for entry in entries)
    configs = _configs(entries)
    data = DatasetCardData(
        pretty_name=f"DepthVLM-Bench: {titles}",
        language=["en"],
        **_licence(sources),
        task_categories=["depth-estimation", "image-text-to-text"],
        size_categories=[next((name for name, end in _SIZES.items() if images < end), "n>1T")],
        source_datasets=["original" if set(sources) == {"synthetic"} else "extended"],
        tags=[*TAGS, "depthvlm-bench"],
        configs=[
            {"config_name": name, "data_files": files, **({"default": True} if name == DEFAULT else {})}
            for name, files in configs.items()
        ],
    )
    DatasetInfosDict({name: _info(_of_config(entries, name)) for name in configs}).to_dataset_card_data(data)
    name = repo_id or build.resolve().name
    return DatasetCard.from_template(
        data,
        template_path=template("dataset_card"),
        title=f"{name.split('/')[-1]}: DepthVLM-Bench, {titles}",
        name=name,
        images=images,
        paper=PAPER,
        closed=", ".join(sources[source]["title"] for source in closed_sources(sources)),
        first_split=configs[DEFAULT][0]["split"],
        one=next(
            ({"source": name, "split": files[0]["split"]} for name, files in configs.items() if name != DEFAULT), None
        ),
        splits=_splits(entries),
        omissions=_omissions(entries),
        columns=table(["column", "type", "what it holds"], _columns()),
        licences=licence_table(sources, sources),
        code_licence=CODE_LICENCE,
        versions=_versions(entries),
        citation=CITATION,
    )


def restricted_sources(build: str | Path) -> tuple[str, ...]:
    """
    Titles of the sources in a build whose terms leave no room for a public copy.

    Raises:
        FileNotFoundError, BuildError: see [`make_dataset_card`].
    """
    from ...benchmark.build.shards import finished_builds

    titles = {entry["source"]: str(entry["title"]) for entry in finished_builds(build).values()}
    return tuple(titles[source] for source in closed_sources(titles))


def _of_config(entries: Sequence[Entry], config: str) -> list[Entry]:
    return [entry for entry in entries if config in (DEFAULT, entry["source"])]


def _configs(entries: Sequence[Entry]) -> dict[str, list[dict[str, Any]]]:
    """Names of the configurations with the `data_files` of each: patterns that match exactly the manifest's shards."""
    names = list(dict.fromkeys(entry["source"] for entry in entries))
    return {
        config: [
            {"split": split, "path": [_pattern(entry) for entry in chosen if entry["split"] == split]}
            for chosen in [_of_config(entries, config)]
            for split in _splits_of(chosen)
        ]
        for config in [DEFAULT, *(names if len(names) > 1 else [])]
    }


def _splits_of(entries: Iterable[Entry]) -> list[str]:
    found = {entry["split"] for entry in entries}
    return [split for split in ("train", "test") if split in found]


def _pattern(entry: Entry) -> str:
    """A shard's name is source-split-NUMBER-of-COUNT.parquet: of another count are leftovers of an older build."""
    return f"{entry['source']}-{entry['split']}-*-of-{len(entry['shards']):05d}.parquet"


def _info(entries: Sequence[Entry]) -> DatasetInfo:
    """Features, and the number of rows of each split, which `load_dataset` then checks."""
    from datasets import DatasetInfo, SplitDict, SplitInfo

    from ...benchmark.build.records import benchmark_features

    splits = SplitDict()
    for split in _splits_of(entries):
        of_split = [entry["counts"] for entry in entries if entry["split"] == split]
        size = sum(counts["bytes"] for counts in of_split)
        splits.add(SplitInfo(split, num_bytes=size, num_examples=sum(counts["rows"] for counts in of_split)))
    size = sum(entry["counts"]["bytes"] for entry in entries)
    return DatasetInfo(features=benchmark_features(), splits=splits, download_size=size, dataset_size=size)


def _licence(sources: Iterable[str]) -> dict[str, Any]:
    """One key where all sources have the same known licence: else none says enough."""
    keys = {terms_of(source).spdx for source in sources}
    only = keys.pop() if len(keys) == 1 else None
    return {"license": only} if only else {"license": "other", "license_name": "terms-of-each-source"}


def _splits(entries: Sequence[Entry]) -> str:
    header = ["source", "split", "images", "in the paper", "points", "scenes", "depth", "valid range", "shards", "size"]
    return table(header, [_split_row(entry) for entry in entries])


def _split_row(entry: Entry) -> list[str]:
    counts, (low, high) = entry["counts"], entry["depth_range"]
    return [
        entry["title"],
        entry["split"],
        str(counts["rows"]),
        _in_the_paper(entry),
        str(counts["points"]),
        str(counts["scenes"]),
        "sparse, lidar" if entry["sparse"] else "dense",
        f"{low:g} to {high:g} m",
        str(len(entry["shards"])),
        f"{counts['bytes'] / 1e6:.1f} MB",
    ]


def _in_the_paper(entry: Entry) -> str:
    from ...benchmark.report.published import published_table

    number = _TABLES[entry["split"]]
    try:
        return f"{published_table(number).cell('Images', entry['source'])} (table {number})"
    except KeyError:
        return "not in it"


def _omissions(entries: Sequence[Entry]) -> str:
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
    return "\n".join(lines)


def _columns() -> list[list[str]]:
    from ...benchmark.build.records import benchmark_features

    features: Mapping[str, Any] = benchmark_features()
    return [[f"`{name}`", _type_of(feature), COLUMNS[name]] for name, feature in features.items()]


def _type_of(feature: Any) -> str:
    from datasets import Image, List

    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, List):
        return f"list of {_type_of(feature.feature)}"
    if isinstance(feature, dict):
        return "{" + ", ".join(feature) + "}"
    return str(feature.dtype)


def _versions(entries: Sequence[Entry]) -> str:
    lines = (", ".join(f"{name} {number}" for name, number in entry["versions"].items()) for entry in entries)
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))
