"""What a training run puts on the Hub: the files and the card of `depthvlm push`, in one commit that is compared."""

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

logger = logging.getLogger(__name__)


class HubPushMixin(Trainer):
    """Pushing, for a trainer with `has_depth_head`; others push as transformers does."""

    has_depth_head: bool
    push_in_progress: Any

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """
        As in transformers, with the files and the checks of `depthvlm push` but its proof: weights in safetensors,
        processor, code and card in one commit, which is compared with the files afterwards. Of an adapter it is the
        adapter. Nothing of the run's own state is pushed.

        Raises:
            PushError: the checkpoint is not whole, or the Hub did not take it. The checkpoint stays in `output_dir`.
        """
        if not self.has_depth_head:
            given = {} if private is None else {"private": private}  # transformers 5.18 does not know it
            return super().push_to_hub(commit_message, blocking, token, revision, **given, **kwargs)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # called with `push_to_hub=False`
            if private is not None:
                self.args.hub_private_repo = private
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None  # type: ignore[return-value]  # as in transformers
        model_name = kwargs.pop("model_name", None) or str(self.hub_model_id).split("/")[-1]
        self.create_model_card(model_name=model_name, **kwargs)
        self._finish_current_push()
        push = self._start_push(
            Path(str(self.args.output_dir)),
            commit_message or "End of training",
            token or self.args.hub_token,
            revision or self.args.hub_revision,
        )
        return push.result() if blocking else push  # type: ignore[return-value]  # a Future, as in transformers

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.has_depth_head:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            logger.warning(
                "`hub_strategy=%r`: the model is pushed at every save, and the state of the optimizer is not. Copy %s "
                "itself to go on from it elsewhere.",
                HubStrategy(self.args.hub_strategy).value,
                checkpoint_folder,
            )
        under_way = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if under_way and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        push = self._start_push(Path(checkpoint_folder), message, self.args.hub_token, self.args.hub_revision)
        push.add_done_callback(_warn_of_failure)
        if under_way:
            self.push_in_progress.jobs.append(push)
        else:
            self.push_in_progress = PushInProgress([push])  # type: ignore[arg-type]  # it wants a list

    def _start_push(self, folder: Path, message: str, token: str | None, revision: str | None) -> "Future[CommitInfo]":
        """The files are chosen and checked now, and sent in the background."""
        from ..hub_cards.push.package import (
            CARD,
            adapter_upload,
            model_upload,
            select_adapter_files,
            select_checkpoint_files,
        )
        from ..hub_cards.push.upload import Hub

        repo_id = str(self.hub_model_id)
        card = Path(str(self.args.output_dir), CARD).read_text(encoding="utf-8")
        if is_peft_model(self.model):
            upload = adapter_upload(select_adapter_files(folder).files, repo_id, card)
        else:
            upload = model_upload(select_checkpoint_files(folder).files, repo_id, card)
        hub = Hub(token)
        return hub.api.run_as_future(lambda: hub.push(upload, revision=revision, message=message).info)


def _warn_of_failure(push: "Future[CommitInfo]") -> None:
    error = None if push.cancelled() else push.exception()
    if error is not None:
        logger.warning("The push of a checkpoint failed, and training goes on: %s", error)
