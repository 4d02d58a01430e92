"""The layers of a head and its training, as frozen dataclasses. The defaults are the tutorial's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from xfeat.featurize.specs import Spec, require

DEFAULT_RUNS = "runs"
CLASS_WEIGHTS = ("none", "balanced")
SCHEDULES = ("constant", "cosine")
LOGISTIC, SVM = "logistic regression (scikit-learn)", "SVM, RBF kernel (scikit-learn)"  # baselines
SORTS = ("accuracy", "balanced_accuracy", "auc", "loss", "name")  # of a comparison


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Spec):
    """The layers: BatchNorm, then Linear, ReLU and BatchNorm per hidden width, then Dropout and Linear.

    Attributes:
        hidden: widths of the hidden layers; empty for a linear head.
        dropout: dropout probability of the inputs of the last layer.
        feature_dropout: dropout probability of the features, before the first layer. The tutorial's network has 0.2
            there, as part of the backbone; cached features come from before it.
    """

    hidden: tuple[int, ...] = (512, 128)
    dropout: float = 0.4
    feature_dropout: float = 0.0

    def __post_init__(self) -> None:
        whole = all(isinstance(width, Integral) and width > 0 for width in self.hidden)
        require(whole, "bad width", expected="whole numbers > 0", found=self.hidden)
        for name in ("dropout", "feature_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} out of range", expected=f"0 ≤ {name} < 1", found=value)


@dataclass(frozen=True, kw_only=True)
class TrainSpec(Spec):
    """The optimisation: cross entropy and Adam; the weights of the epoch with the lowest validation loss are used.

    Attributes:
        epochs: maximum number of passes over the training rows.
        lr: Adam's initial learning rate.
        batch_size: rows per step.
        weight_decay: Adam's L2 penalty.
        class_weight: ``balanced`` weights classes by the inverse of their frequency.
        label_smoothing: part of the target that is spread evenly over all classes.
        focal_gamma: exponent of the focal loss; 0 is plain cross entropy.
        schedule: ``constant``, or ``cosine``: the learning rate falls to 0 over ``epochs``, updated once per epoch.
        patience: stop after this number of epochs without a lower validation loss; 0 never stops early.
        average: decay per step of the moving average of the weights, which is then validated and used; 0 is off.
        seed: of the initial weights, the order of the rows and dropout.
    """

    epochs: int = 10
    lr: float = 5e-4
    batch_size: int = 32
    weight_decay: float = 0.0
    class_weight: str = "none"
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    schedule: str = "constant"
    patience: int = 0
    average: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "too few epochs", expected="1 or more", found=self.epochs)
        require(0 < self.lr < math.inf, "learning rate must be positive", expected="> 0", found=self.lr)
        require(self.batch_size >= 2, "BatchNorm needs two rows per batch", expected="2 or more", found=self.batch_size)
        require(0 <= self.seed < 2**32, "seed out of range", expected="0 to 4294967295", found=self.seed)
        require(self.patience >= 0, "negative patience", expected="0 or more", found=self.patience)
        for name in ("weight_decay", "focal_gamma"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} out of range", expected="0 or more, and finite", found=value)
        for name in ("label_smoothing", "average"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} out of range", expected=f"0 ≤ {name} < 1", found=value)
        for name, known in (("schedule", SCHEDULES), ("class_weight", CLASS_WEIGHTS)):
            value = getattr(self, name)
            require(value in known, f"unknown {name}", expected=" or ".join(known), found=value)


@dataclass(frozen=True, kw_only=True)
class MemorySpec(Spec):
    """How much memory features may use during training.

    Attributes:
        memory_mb: limit for training and validation rows as float32, in 10^6 bytes; more rows stay on the disk and are
            read in blocks.
    """

    memory_mb: float = 1000.0

    def __post_init__(self) -> None:
        require(0 < self.memory_mb < math.inf, "memory out of range", expected="> 0", found=self.memory_mb)


@dataclass(frozen=True, kw_only=True)
class TargetSpec(Spec):
    """The wanted operating point.

    Attributes:
        positive: the class that must not be missed.
        target_sensitivity: sensitivity to reach, 0 to 1.
    """

    positive: str
    target_sensitivity: float = 0.95

    def __post_init__(self) -> None:
        require(
            0 < self.target_sensitivity <= 1,
            "target sensitivity out of range",
            expected="0 < P ≤ 1, such as 0.95",
            found=self.target_sensitivity,
        )


@dataclass(frozen=True, kw_only=True)
class CrossvalSpec(Spec):
    """The plan of a cross-validation.

    Attributes:
        folds: number of folds; each is tested once.
        seeds: repetitions, each with different folds and initial weights.
        by_image: whether to repeat it with image-level folds, which split patients, to show how much higher the
            accuracy seems.
        members: heads of the ensemble of each fold; see :mod:`xfeat.head.training.ensemble`.
        leave_out: a further column of the cache, such as a hospital; each of its values is also tested by heads that
            were trained without it.
    """

    folds: int = 5
    seeds: int = 1
    by_image: bool = True
    members: int = 1
    leave_out: str | None = None

    def __post_init__(self) -> None:
        require(self.members >= 1, "too few ensemble members", expected="1 or more", found=self.members)
        require(self.folds >= 2, "too few folds", expected="2 or more", found=self.folds)
        require(self.seeds >= 1, "too few seeds", expected="1 or more", found=self.seeds)
