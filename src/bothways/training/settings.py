"""What a person may decide about a training stage: one frozen dataclass per stage, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bothways.errors import ConfigError
from bothways.training.checks import inside, one_of, whole, within

Schedule = Literal["cosine", "linear", "constant", "wsd"]
CheckpointingWish = Literal["auto", "on", "off"]
Tune = Literal["lora", "dora", "qlora", "full"]
TrainingPrecision = Literal["auto", "fp32", "bf16"]
MaskScheme = Literal["bert", "all"]
MaskSchedule = Literal["fixed", "linear", "uniform"]
Batching = Literal["homogeneous", "mixed"]
GradedLoss = Literal["cosent", "bixse"]
DIRECTIONS = ("q->d", "d->q", "q->q", "d->d")
LOWEST_TEMPERATURE = 0.01
"""Of one that is learnt (CLIP)."""
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every stage shares."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Items of one step (blocks, texts or examples), over all processes. Mathematics."""
    tokens_per_batch: int | None = None
    """Tokens, padding included, that go through the model at once; None: what suits the device, halved where the memory
    runs out. Memory and speed; of the result, dropout alone."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    warm_up: float = 0.0
    """Share of the steps in which the learning rate rises linearly to its peak."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up, to reach 0 where training ends; wsd: only at the very end, as
    1 - sqrt (Hägele et al. 2024, arXiv 2405.18392); constant: it does not."""
    decay: float = 0.2
    """Share of the steps, the last ones, in which schedule="wsd" lets the learning rate fall."""
    weight_decay: float = 0.0
    """AdamW's weight decay, on matrices only."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this length where it is longer; 0: never."""
    ema_decay: float = 0.0
    """Decay, per step, of an exponential average of the weights, which is what the stage gives; 0: the last weights."""
    tune: Tune = "lora"
    """lora: adapters on every linear layer of the decoder layers, merged at the end; dora: those, and each output's
    magnitude; qlora: lora on layers that are kept in 4 bits meanwhile (needs bothways[qlora]); full: all weights."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """The adapters' output is scaled by lora_alpha / lora_r."""
    lora_dropout: float = 0.05
    """Dropout in front of the adapters."""
    precision: TrainingPrecision = "auto"
    """bf16: compute in bfloat16, train float32 weights; auto: that where the device is faster so, else fp32."""
    gradient_checkpointing: CheckpointingWish = "auto"
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time. auto:
    off until the memory runs out with the longest row alone."""
    compile: bool = False
    """Compile the decoder layers with torch.compile, all but their attention: up to minutes at the start, then somewhat
    faster steps (1.06 times on one CPU core)."""
    max_length: int | None = None
    """Tokens read of one text during this stage; None: as the encoder does."""
    held_out_items: int = 200
    """Items kept back to measure the loss on, when none are given; never more than a tenth of all. 0: none."""
    evaluate_every: int = 0
    """Steps between measurements of the held-out loss; 0: only before the first step and after the last."""
    save_every: int = 100
    """Steps between checkpoints, where there is a folder for them; the last two are kept. 0: only when interrupted."""
    trackers: tuple[str, ...] = ()
    """Where to report loss, learning rate, gradient norm, rate and held-out scores: tensorboard, wandb, trackio."""
    log_dir: str | None = None
    """Folder for what trackers write; None: beside the checkpoints, and it stays when they go."""
    seed: int = 0
    """Decides the order of the data, the masks, dropout and the adapters' start."""

    def __post_init__(self) -> None:
        whole(self, "steps", low=1)
        whole(self, "batch_size", low=1)
        if self.tokens_per_batch is not None:
            whole(self, "tokens_per_batch", low=1)
        within(self, "learning_rate", low=0.0, open_low=True)
        within(self, "warm_up", low=0.0, high=1.0)
        within(self, "decay", low=0.0, high=1.0)
        if self.schedule == "wsd" and self.warm_up + self.decay > 1:
            raise ConfigError(
                f'{type(self).__name__}(schedule="wsd", warm_up={self.warm_up:g}, decay={self.decay:g}): expected '
                "warm_up + decay <= 1."
            )
        within(self, "weight_decay", low=0.0)
        within(self, "ema_decay", low=0.0, high=1.0, open_high=True)
        within(self, "max_grad_norm", low=0.0)
        whole(self, "lora_r", low=1)
        whole(self, "lora_alpha", low=1)
        within(self, "lora_dropout", low=0.0, high=1.0, open_high=True)
        whole(self, "held_out_items", low=0)
        whole(self, "evaluate_every", low=0)
        whole(self, "save_every", low=0)
        whole(self, "seed", low=0)
        if self.max_length is not None:
            whole(self, "max_length", low=1)
        one_of(self, "schedule", ("cosine", "linear", "constant", "wsd"))
        one_of(self, "tune", ("lora", "dora", "qlora", "full"))
        one_of(self, "precision", ("auto", "fp32", "bf16"))
        one_of(self, "gradient_checkpointing", ("auto", "on", "off"))
        for name in self.trackers:
            if name not in TRACKERS:
                known = ", ".join(f'"{item}"' for item in TRACKERS)
                raise ConfigError(f"{type(self).__name__}(trackers={self.trackers!r}): expected some of {known}.")

    def rate(self, step: int) -> float:
        """Learning rate of the step with this number, counted from 0; the step after the last would have 0."""
        rising = round(self.warm_up * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if self.schedule == "constant":
            return self.learning_rate
        falling = round(self.decay * self.steps) if self.schedule == "wsd" else self.steps - rising
        share = max(0.0, (step + falling - self.steps) / max(1, falling))
        fallen = {"linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2, "wsd": math.sqrt(share)}
        return self.learning_rate * (1 - fallen[self.schedule])


@dataclass(frozen=True, kw_only=True)
class MNTP(Training):
    """Masked next token prediction: hide some tokens and predict each from the output one position before it.

    Source: LLM2Vec (arXiv 2404.05961), sec. 2.2; its settings are the defaults.
    """

    block_size: int | None = 512
    """Texts are joined in order and cut into blocks of so many tokens; None: every text is a row of its own, padded."""
    mask_rate: float = 0.2
    """Share of the tokens that are hidden and predicted; whatever the schedule, of the held-out rows it is this."""
    mask_schedule: MaskSchedule = "fixed"
    """fixed: mask_rate in every step; linear: from there to mask_rate_end; uniform: each row its own, from U(0, 1)."""
    mask_rate_end: float | None = None
    """Share in the last step where mask_schedule is linear."""
    whole_words: bool = False
    """Hide all tokens of a word or none, in the same share of all tokens."""
    mask_scheme: MaskScheme = "bert"
    """bert: 80 % of the hidden tokens become the mask token, 10 % a random one, 10 % stay; all: all are masked."""
    mask_token: int | str = "auto"
    """A token or its id (by id also one that is called so). auto: the first there is of "_", the mask token, unk, the
    last token of the vocabulary; new: a row of the embedding that no token has, which is trained and saved."""
    train_head: bool = False
    """Train the language-model head too. One that is tied to the embedding is trained when that is: with tune=full."""
    held_out_rates: tuple[float, ...] = ()
    """Mask rates at which the held-out rows are measured besides."""
    merge_back: float = 0.0
    """Weight of the weights from before the stage in the mean of those and the trained ones that it ends with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "mask_rate", low=0.0, high=1.0, open_low=True, open_high=True)
        if self.mask_rate_end is not None:
            within(self, "mask_rate_end", low=0.0, high=1.0, open_low=True, open_high=True)
        one_of(self, "mask_schedule", ("fixed", "linear", "uniform"))
        for rate in self.held_out_rates:
            inside(self, "held_out_rates", rate, low=0.0, high=1.0, open_low=True, open_high=True)
        within(self, "merge_back", low=0.0, high=1.0, open_high=True)
        one_of(self, "mask_scheme", ("bert", "all"))
        if self.block_size is not None:
            whole(self, "block_size", low=2)
        if (self.mask_schedule == "linear") != (self.mask_rate_end is not None):
            raise ConfigError(
                f'MNTP(mask_schedule="{self.mask_schedule}", mask_rate_end={self.mask_rate_end}): mask_rate_end goes '
                'with mask_schedule="linear", and that with it. Give both or neither.'
            )

    def mask_rate_of(self, step: int) -> float | None:
        """Share of the tokens hidden in the step with this number, counted from 0; None: each row draws its own."""
        if self.mask_rate_end is not None:
            share = step / max(1, self.steps - 1)
            return (1 - share) * self.mask_rate + share * self.mask_rate_end
        return self.mask_rate if self.mask_schedule == "fixed" else None


@dataclass(frozen=True, kw_only=True)
class Contrastive(Training):
    """What the stages share that learn from batches of vectors."""

    temperature: float = 0.05
    """Cosine similarities are divided by it; smaller is sharper."""
    dropout: float | None = None
    """Attention dropout during this stage; None: what the model's config says."""
    matryoshka: tuple[int, ...] = ()
    """Numbers of first dimensions that are to stand alone too: the loss is the sum of that of each and of all."""
    spread_out: float = 0.0
    """Weight of the mean squared cosine of different texts, which spreads the vectors over the sphere."""
    grad_cache: bool = False
    """Embed the batch without graphs first, all but the last part, then part by part with them: the memory of one part
    for up to a third more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "temperature", low=0.0, open_low=True)
        within(self, "spread_out", low=0.0)
        for dim in self.matryoshka:
            if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
                raise ConfigError(
                    f"{type(self).__name__}(matryoshka={self.matryoshka!r}): expected whole numbers above 0."
                )
        if self.dropout is not None:
            within(self, "dropout", low=0.0, high=1.0, open_high=True)


@dataclass(frozen=True, kw_only=True)
class SimCSE(Contrastive):
    """Unsupervised contrastive learning: two dropout views of a text belong together, other texts do not.

    Source: Gao et al. 2021 (arXiv 2104.08821); LLM2Vec (arXiv 2404.05961), sec. 2.3; its settings are the defaults.
    """

    batch_size: int = 128
    """Texts of one step, over all processes. Mathematics: the others of the batch are the negatives."""
    learning_rate: float = 3e-5
    """Peak learning rate of AdamW."""
    max_length: int | None = 128
    """Tokens read of one text during this stage; None: as the encoder does."""
    dropout: float | None = 0.3
    """Attention dropout during this stage; None: what the model's config says."""
    embedding_dropout: float | None = None
    """Dropout on the input embeddings during this stage; None: at the rate of dropout where that does not reach the
    model, as in recurrent ones, and none elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_dropout is not None:
            within(self, "embedding_dropout", low=0.0, high=1.0, open_high=True)


@dataclass(frozen=True, kw_only=True)
class Distil(Contrastive):
    """Distillation: the student's vectors, and their similarities, are to be those of a teacher."""

    teacher: str = ""
    """A folder (or hub id) of sentence-transformers; or a .parquet file with the columns "text" and "vector"."""
    cosine: float = 1.0
    """Weight of the distance (1 - cosine) to the teacher's vector of the same text."""
    similarity: float = 1.0
    """Weight of the divergence, in nats, between the teacher's and the student's similarities within a batch."""
    similarity_temperature: float = 0.05
    """Similarities of both are divided by it first; smaller looks at the nearest texts alone."""
    contrastive: float = 0.0
    """Weight of the contrastive loss; above 0 the data are examples (query, positive), else texts."""
    batch_size: int = 128
    """Texts, or examples, of one step, over all processes. Mathematics: similarities are those within the batch."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises linearly to its peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cosine", "similarity", "contrastive"):
            within(self, name, low=0.0)
        within(self, "similarity_temperature", low=0.0, open_low=True)
        if not (self.cosine or self.similarity):
            raise ConfigError("Distil(cosine=0, similarity=0): nothing is learnt from the teacher. Raise one of them.")
        if self.matryoshka and not (self.similarity or self.contrastive):
            raise ConfigError(
                f"Distil(matryoshka={self.matryoshka}, similarity=0, contrastive=0): first dimensions learn "
                "similarities, since a teacher has no vector of that width. Raise one of the two."
            )


@dataclass(frozen=True, kw_only=True)
class Supervised(Contrastive):
    """Supervised contrastive learning: a query belongs to its positive, not to any other document of the batch.

    Source: LLM2Vec (arXiv 2404.05961), sec. 4.1; its settings are the defaults, but for a batch of 64 instead of 512.
    """

    batch_size: int = 64
    """Examples of one step, over all processes. Mathematics: the documents of the others are negatives too."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW."""
    warm_up: float = 0.3
    """Share of the steps in which the learning rate rises linearly to its peak."""
    temperature: float = 0.02
    """Cosine similarities are divided by it; smaller is sharper."""
    learn_temperature: bool = False
    """Train the temperature too, from `temperature` on; where a data set has one of its own, that stays."""
    directions: tuple[str, ...] = ("q->d",)
    """Who is told apart from whom: queries from documents (q->d, always), documents from queries (d->q), and in the
    same comparison queries from queries (q->q) and documents from documents (d->d). A source with in_batch=false has
    q->d alone."""
    margin: float | None = None
    """What is more similar to a query than its positive by more than this (in cosines) is no negative; None: all."""
    graded_loss: GradedLoss = "cosent"
    """For data sets with scores. cosent: the order of the cosines; bixse: each pair's score as a probability."""
    bias: float = 0.0
    """Added to cosine / temperature where graded_loss is bixse; below 0 where few pairs of a batch belong together."""
    negatives: int = 1
    """Hard negatives used of each example; where it has more, they are drawn anew in every epoch."""
    batching: Batching = "homogeneous"
    """What a batch is made of: homogeneous (examples of one source, another one in each step) or mixed (of all)."""
    size_exponent: float = 1.0
    """Share of a source in the steps: weight x items ** size_exponent. 1: by size; 0: all alike. alpha of XLM-R."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "negatives", low=0)
        one_of(self, "graded_loss", ("cosent", "bixse"))
        within(self, "bias", low=-1000.0, high=1000.0)
        if self.margin is not None:
            within(self, "margin", low=-2.0, high=2.0)
        for name in self.directions:
            if name not in DIRECTIONS:
                known = ", ".join(f'"{item}"' for item in DIRECTIONS)
                raise ConfigError(f"Supervised(directions={self.directions!r}): expected some of {known}.")
        if "q->d" not in self.directions:
            raise ConfigError(f'Supervised(directions={self.directions!r}): "q->d" has the positive pairs. Add it.')
        if self.learn_temperature and self.temperature < LOWEST_TEMPERATURE:
            raise ConfigError(
                f"Supervised(learn_temperature=True, temperature={self.temperature:g}): a temperature that is learnt "
                f"stays at or above {LOWEST_TEMPERATURE:g}. Start there or higher."
            )
        one_of(self, "batching", ("homogeneous", "mixed"))
        within(self, "size_exponent", low=0.0, high=1.0)
