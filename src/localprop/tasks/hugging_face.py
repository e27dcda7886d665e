"""The usual tasks of Hugging Face's models, by the names of their classes and their configurations.

The losses are those of transformers/loss/loss_utils.py, 5.24, and of the models that have their
own. `network.own_loss` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.tasks.classification import CausalLM, Classification, Segmentation
from localprop.tasks.custom import task
from localprop.tasks.elementwise import MultiLabel, Regression
from localprop.tasks.task import Task, require_targets


def find_hugging_face_task(model: nn.Module, targets: Any) -> Task | None:
    """The usual task of a model of Hugging Face, or of a subclass; None if it has no usual task.

    Args:
        model: any network.
        targets: the targets of a batch.
    """
    config = get_config(model)
    if config is None:
        return None
    # A compiled model holds the one that it runs, and so does one with adapters (peft).
    model = getattr(model, "_orig_mod", model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    for kind in type(inner).__mro__:
        for ending, make in BY_ENDING.items():
            if kind.__name__.endswith(ending):
                return make(model, config, targets)
    return None


def get_config(model: nn.Module) -> Any:
    """The configuration of a model of Hugging Face, or None if it is none."""
    config = getattr(model, "config", None)
    return config if hasattr(config, "model_type") else None


def _make_sequence_task(model: nn.Module, config: Any, targets: Any) -> Task:
    """As ForSequenceClassificationLoss decides where `config.problem_type` is None."""
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"
    elif problem is None and isinstance(targets, Tensor) and targets.is_floating_point():
        problem = "multi_label_classification"
    if problem == "regression":
        return Regression()
    return MultiLabel() if problem == "multi_label_classification" else Classification(dim=1)


def _make_generation_task(model: nn.Module, config: Any, targets: Any) -> Task:
    """An encoder-decoder shifts its labels to make its decoder's inputs, so that they fit as is."""
    return Classification(dim=-1) if config.is_encoder_decoder else CausalLM()


def _make_segmentation_task(model: nn.Module, config: Any, targets: Any) -> Task | None:
    ignored = getattr(config, "semantic_loss_ignore_index", 255)
    return None if config.num_labels == 1 else Segmentation(ignore_index=ignored)


def _make_series_task(model: nn.Module, config: Any, targets: Any) -> Task | None:
    """PatchTST and PatchTSMixer; others return the parameters of a distribution."""
    return Regression() if getattr(config, "loss", None) == "mse" else None


def _make_span_task(model: nn.Module, config: Any, targets: Any) -> Task:
    """Two classifications of the samples, whose classes are the positions."""
    return task(forward=run_for_spans, targets=stack_spans, loss=Classification(dim=1))


def run_for_spans(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The scores (N, T, 2) of each position as the start and as the end of an answer."""
    result = model(**{name: value for name, value in batch.items() if name not in SPAN})
    return torch.stack((result.start_logits, result.end_logits), -1)


def stack_spans(batch: Mapping[str, Any]) -> Tensor:
    """The positions (N, 2) at which answers start and end."""
    return torch.stack([batch[name].flatten() for name in SPAN], -1)


SPAN = ("start_positions", "end_positions")


@dataclass(frozen=True)
class ConnectionistTemporal(Task):
    """The CTC loss of frames (N, T, C) with labels (N, U): the characters, without their places.

    Labels below 0 and blanks count as padding. With reduction="mean", a batch weighs as many as it
    has samples.

    Attributes:
        blank: the class of blanks.
        reduction: mean, or sum as in Hugging Face's configurations by default.
        zero_infinity: whether samples with fewer frames than labels add 0.
        count_frames: the number of frames of each number of audio samples.
    """

    blank: int
    reduction: str
    zero_infinity: bool
    count_frames: Callable[[Tensor], Tensor] = field(repr=False)

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        labels = require_targets(self, batch)
        mask = batch.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(batch["input_values"], dtype=torch.long)
        counts = (labels >= 0) & (labels != self.blank)
        probabilities = functional.log_softmax(output, dim=-1, dtype=torch.float32)
        with torch.backends.cudnn.flags(enabled=False):  # as the models do
            return functional.ctc_loss(
                probabilities.transpose(0, 1),
                labels.masked_select(counts),
                self.count_frames(mask.sum(-1)).long(),
                counts.sum(-1),
                blank=self.blank,
                reduction=self.reduction,
                zero_infinity=self.zero_infinity,
            )

    def weight(self, batch: Any) -> float | None:
        return len(require_targets(self, batch)) if self.reduction == "mean" else None


def _make_ctc_task(model: nn.Module, config: Any, targets: Any) -> Task | None:
    count_frames = getattr(model, "_get_feat_extract_output_lengths", None)
    if count_frames is None:
        return None
    return ConnectionistTemporal(
        config.pad_token_id, config.ctc_loss_reduction, config.ctc_zero_infinity, count_frames
    )


Maker = Callable[[nn.Module, Any, Any], Task | None]
BY_ENDING: dict[str, Maker] = {
    **dict.fromkeys(
        (
            "ForSequenceClassification",
            "ForImageClassification",
            "ForVideoClassification",
            "ForAudioClassification",
            "ForMultipleChoice",
            "ForNextSentencePrediction",
        ),
        _make_sequence_task,
    ),
    **dict.fromkeys(
        ("ForConditionalGeneration", "ForSeq2SeqLM", "EncoderDecoderModel", "MTModel"),
        _make_generation_task,
    ),
    **dict.fromkeys(("ForCausalLM", "LMHeadModel"), lambda model, config, targets: CausalLM()),
    **dict.fromkeys(
        ("ForMaskedLM", "ForTokenClassification"),
        lambda model, config, targets: Classification(dim=-1),
    ),
    **dict.fromkeys(("ForPrediction", "ForRegression"), _make_series_task),
    "ForSemanticSegmentation": _make_segmentation_task,
    "ForQuestionAnswering": _make_span_task,
    "ForCTC": _make_ctc_task,
}
