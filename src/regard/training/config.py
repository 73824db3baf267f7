"""Settings of a training run."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from regard.device import check_device

Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]  # within float32


class TrainingConfig(BaseModel):
    """Settings of a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_steps: int = Field(10_000, gt=0)
    """Largest number of updates."""
    batch_tokens: int = Field(4096, gt=0)
    """Largest number of positions in a batch, counted on each side separately, padding included."""
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """The peak learning rate."""
    schedule: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    """Schedule of the learning rate after the warm-up."""
    warmup: int = Field(1000, ge=0)
    """Updates of linear warm-up."""
    max_minutes: float | None = Field(None, gt=0)
    """Minutes of training after which the run ends as if max_steps were reached."""
    accumulate: int = Field(1, gt=0)
    """Parts in which each process computes its rows of a batch, one after the other, to need less memory; they are
    doubled when memory runs out."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes hold the weights: each holds all of them ("ddp"), or a share ("fsdp", FSDP2)."""
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Seconds after which a process that does not answer the others is given up."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of a moving average of the weights, which is what is evaluated and kept; 0 is off, 0.999 usual."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for all parameters, or Muon (Jordan 2024) for the blocks' matrices and AdamW for the rest."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's decay rates of the first and the second moment, below 1."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay of matrices; vectors (norms, biases) are not decayed."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; a larger one is scaled down to it."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """ε of the smoothed target."""
    smoothing: Literal["torch", "fairseq", "joeynmt", "mxnet"] = "torch"
    """Definition of label smoothing."""
    guided_alignment: Weight = 0.0
    """Weight of guided alignment (Garg et al. 2019): one head is supervised by IBM Model 1's links; 0 is off."""
    coverage_loss: Weight = 0.0
    """λ of Σ_i (1 - Σ_t α_ti)², doubly stochastic attention (Xu et al. 2015, equation 14); 0 is off."""
    ctc: float = Field(0.0, ge=0, lt=1)
    """Weight of CTC in the loss, beside attention (Watanabe et al. 2017); needs model.ctc_head."""
    ctc_halfway: float = Field(0.0, ge=0, lt=1)
    """Share of the CTC loss computed from the states after half of the encoder's blocks (Lee and Watanabe 2021,
    intermediate CTC)."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the decoder's previous tokens that are replaced by PAD (Bowman et al. 2016, word dropout)."""
    bpe_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the merges that are left out when a training pair is tokenized, anew in every epoch (Provilkov et al.
    2020); 0.1 is usual. Needs tokenizer.kind = "bpe" or "byte_bpe"."""
    r_drop: Weight = 0.0
    """Weight of R-Drop (Wu et al. 2021): every batch is computed twice, with two draws of dropout, and the two
    distributions are drawn together; 0 is off, 1 to 5 usual."""
    concat_pairs: float = Field(0.0, ge=0, le=1)
    """Share of the batches of recordings that are concatenated two by two, for generalization to longer recordings."""
    hard: Literal["straight_through", "reinforce"] = "straight_through"
    """Gradient estimator of hard attention."""
    entropy: Weight = 0.01
    """Weight of the entropy bonus of the sampled positions, for reinforce."""
    device: Annotated[str, AfterValidator(check_device)] = "cpu"
    """Where the model is trained: "cpu", "cuda", "cuda:1", "mps", or "auto": the accelerator that torch finds, or the
    CPU. A config gives the same numbers on every machine, so it uses an accelerator only where it names one; a run may
    be resumed on another device, with other rounding."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; weights, updates, softmax and norms stay in float32. "auto": bfloat16 on a GPU,
    float32 on a CPU. A device without bfloat16 instructions computes everything in float32, which is many times faster
    there."""
    tf32: bool = False
    """Compute float32 products on a CUDA device in TF32 (10 bits of mantissa), while the run lasts."""
    evaluate_every: int = Field(500, gt=0)
    """Updates between evaluations."""
    tensorboard: bool = False
    """Write curves for TensorBoard into the run's folder, beside the journal (the extra "tensorboard")."""
    checkpoint_seconds: float = Field(120, gt=0)
    """Seconds between checkpoints; one is also written at every evaluation."""
    metric: Literal["bleu", "chrf", "loss", "exact", "wer"] = "bleu"
    """Decides which checkpoint is best: for loss and wer (word error rate) smaller is better, for the others larger."""
    patience: int = Field(0, ge=0)
    """Evaluations without improvement before the run stops; 0 never stops early."""
    keep_best: int = Field(3, gt=0)
    """How many best checkpoints are kept; their average competes with the single best at the end."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the weights, the order of the data, dropout and augmentation."""
