"""The page of the metric's Space: two lists of metres, a protocol, and the metric's answer."""

import json
from pathlib import Path
from typing import Any

import evaluate
from depthvlm.benchmark.scoring.protocols import PROTOCOLS

# Their crops are of maps of one size; lists of points have none.
POINT_PROTOCOLS = [name for name, protocol in PROTOCOLS.items() if protocol.crop is None]


def score(predictions: str, references: str, protocol: str) -> dict[str, Any]:
    """Return the metrics of what was typed.

    Args:
        predictions: JSON with a list of metres for each image: `[[1.0, 2.0], [3.0]]`.
        references: The same of the truth.
        protocol: One of `POINT_PROTOCOLS`.

    Raises:
        ValueError: A field is not such JSON, the two do not fit, or there is no valid truth.
    """
    metric = evaluate.load(str(Path(__file__).with_name("depth_metrics.py")))
    return metric.compute(predictions=json.loads(predictions), references=json.loads(references), protocol=protocol)


def page() -> Any:
    """Return the page, not yet launched."""
    import gradio as gr

    def answer(predictions: str, references: str, protocol: str) -> dict[str, Any]:
        try:
            return score(predictions, references, protocol)
        except (TypeError, ValueError) as error:
            raise gr.Error(str(error)) from error

    return gr.Interface(
        answer,
        [
            gr.Textbox("[[1.0, 2.0]]", label="Predicted metres, a list for each image (JSON)"),
            gr.Textbox("[[1.0, 4.0]]", label="Measured metres, the same (JSON)"),
            gr.Dropdown(POINT_PROTOCOLS, value="dense", label="Protocol"),
        ],
        gr.JSON(label="Metrics"),
        title="depth_metrics",
        description="Metric depth against measured depth. The card of this Space says what each number is.",
        flagging_mode="never",
    )


if __name__ == "__main__":
    page().launch()
