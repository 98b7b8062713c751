"""`POST /v1/depth` of a server for depth: a request in, the list of its images' depth out."""

import asyncio
import json
from argparse import Namespace
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from starlette.datastructures import State
from vllm.entrypoints.pooling.pooling.protocol import IOProcessorRequest
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, validate_json_request, with_cancellation

from .vllm_requests import DepthRequest

router = APIRouter()


class ModelDepthRequest(DepthRequest):
    """A depth request, optionally with the name of the model that is to answer it."""

    model: str | None = None


@router.post("/v1/depth", dependencies=[Depends(validate_json_request)])
@with_cancellation
@load_aware_call
async def depth(request: ModelDepthRequest, raw_request: Request) -> Response:
    """Return the depth of every image, as `data` of `POST /pooling`."""
    data = request.model_dump(exclude={"model"})
    pooling = raw_request.app.state.serving_pooling
    answer = await pooling(IOProcessorRequest(model=request.model, data=data), raw_request)
    return await asyncio.to_thread(_only_data, answer)


def _only_data(answer: Response) -> Response:
    return Response(json.dumps(json.loads(bytes(answer.body))["data"]), media_type="application/json")


class DepthEndpoint:
    """The endpoint plugin, which vLLM loads where `VLLM_PLUGINS` names it and the server has depth."""

    name = "depthvlm"
    required_tasks = ("plugin",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the route to the server."""
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Return: the route needs no state but vLLM's own."""
