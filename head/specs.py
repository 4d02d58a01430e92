"""What a head is and how it is trained, as frozen dataclasses. The defaults are the tutorial's."""

from __future__ import annotations

from dataclasses import dataclass

from featurize.specs import Spec, require

CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Spec):
    """The layers: BatchNorm, then Linear, ReLU and BatchNorm per hidden width, then Dropout and Linear.

    Attributes:
        hidden: widths of the hidden layers; none makes a linear head.
        dropout: probability of zeroing an input of the last layer.
    """

    hidden: tuple[int, ...] = (512, 128)
    dropout: float = 0.4

    def __post_init__(self) -> None:
        require(all(width > 0 for width in self.hidden), "bad width", expected="> 0", found=self.hidden)
        require(0 <= self.dropout < 1, "dropout out of range", expected="0 ≤ dropout < 1", found=self.dropout)


@dataclass(frozen=True, kw_only=True)
class TrainSpec(Spec):
    """The optimisation: cross entropy and Adam; the weights with the lowest validation loss are kept.

    Attributes:
        epochs: passes over the training rows.
        lr: Adam's learning rate.
        batch_size: rows a step.
        weight_decay: Adam's L2 penalty.
        class_weight: ``balanced`` weighs classes by the inverse of their frequency.
        seed: of the initial weights, the order of the rows and dropout.
    """

    epochs: int = 10
    lr: float = 5e-4
    batch_size: int = 32
    weight_decay: float = 0.0
    class_weight: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "too few epochs", expected="1 or more", found=self.epochs)
        require(self.lr > 0, "learning rate must be positive", expected="> 0", found=self.lr)
        require(self.batch_size >= 2, "BatchNorm needs two rows a batch", expected="2 or more", found=self.batch_size)
        require(self.weight_decay >= 0, "negative weight decay", expected="0 or more", found=self.weight_decay)
        require(self.seed >= 0, "negative seed", expected="0 or more", found=self.seed)
        require(
            self.class_weight in CLASS_WEIGHTS,
            "unknown class weight",
            expected=" or ".join(CLASS_WEIGHTS),
            found=self.class_weight,
        )
