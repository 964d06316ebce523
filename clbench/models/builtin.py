"""The built-in models and their options, declared without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from clbench.core.hookspecs import ModelInfo, hookimpl
from clbench.core.options import NoOptions, Options

WIDTH = 400  # units in a hidden layer of `mlp`


class MLPOptions(Options):
    """Options of `mlp`."""

    LATER: ClassVar[tuple[str, ...]] = ("init",)

    width: int = Field(WIDTH, ge=1, description="number of units in each hidden layer")
    depth: int = Field(2, ge=0, description="number of hidden layers; 0 gives the model linear")
    init: Literal["torch", "xavier", "truncated-normal"] = Field(
        "torch", description="initial weights and biases. torch: torch's default; xavier: uniform weights by Xavier's "
        "rule, biases 0 (Mammoth); truncated-normal: weights with a standard deviation of 0.1, cut off at two of them, "
        "biases 0.1 (Chaudhry et al. 2019)")

    @model_validator(mode="after")
    def _check_width(self) -> MLPOptions:
        """Reject a width if there are no hidden layers."""
        if self.depth == 0 and self.width != WIDTH:
            raise ValueError("width is of hidden layers, and depth = 0 has none; leave width out, or choose depth >= 1")
        return self


class VisionOptions(Options):
    """Base of the options of all image models."""

    LATER: ClassVar[tuple[str, ...]] = ("size",)

    size: int | None = Field(None, ge=1, description="side length in pixels to which images are resized; none: the "
                             "size of the pretrained weights, else the benchmark's size")


class CNNOptions(VisionOptions):
    """Options of `cnn`."""

    channels: int = Field(32, ge=1, description="channels of the first stage; each further stage has twice as many")
    depth: int = Field(2, ge=1, le=4, description="number of stages (3x3 convolution, ReLU, 2x2 max pooling)")


class ResNet18Options(VisionOptions):
    """Options of `resnet18`."""

    width: int = Field(64, ge=1, description="channels of the first stage; each of the other three has twice as many")


class ResNetCIFAR10Options(VisionOptions):
    """Options of `resnet20` and `resnet32`."""

    width: int = Field(16, ge=1, description="channels of the first stage; each of the other two has twice as many")


class ViTOptions(VisionOptions):
    """Options of `vit-tiny`; the defaults are DeiT-Ti's (arXiv 2012.12877), except for the patch size, for 32 px."""

    patch: int = Field(
        4, ge=1, description="side length of a patch in pixels; must divide the side length of the image")
    width: int = Field(192, ge=1, description="embedding dimension of a token; must be a multiple of `heads`")
    depth: int = Field(12, ge=1, description="number of transformer blocks")
    heads: int = Field(3, ge=1, description="number of attention heads")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of a block's MLP divided by `width`")

    @model_validator(mode="after")
    def _check_heads(self) -> ViTOptions:
        """Reject a width that is not a multiple of the number of heads."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ViTB16Options(ViTOptions):
    """Options of `vit-b16`: ViT-B/16 for 224 px (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

    patch: int = Field(
        16, ge=1, description="side length of a patch in pixels; must divide the side length of the image")
    width: int = Field(768, ge=1, description="embedding dimension of a token; must be a multiple of `heads`")
    heads: int = Field(12, ge=1, description="number of attention heads")


Pooling = Literal["mean", "cls", "last"]


class TextModelOptions(Options):
    """Options of text models."""

    pool: Pooling | None = Field(None, description="pooling of tokens into the features of a text. mean: mean of the "
                                 "tokens; cls: first token; last: last token; none: as in the model's "
                                 "sentence-transformers configuration, else last for decoders like Llama, and mean "
                                 "for others")
    dropout: float | None = Field(0.0, ge=0, lt=1, description="dropout rate of the model's dropout layers in "
                                  "training; none: the rates in its configuration, with which seeds train one by one")


@hookimpl
def clbench_models() -> Sequence[ModelInfo]:
    """Return the built-in models."""
    return (
        ModelInfo("mlp", "clbench.models.small:mlp", "multilayer perceptron with ReLU", MLPOptions),
        ModelInfo("linear", "clbench.models.small:linear",
                  "linear layer on flattened inputs, for features from clbench embed", NoOptions),
        ModelInfo("cnn", "clbench.models.small:cnn",
                  "small convolutional network with 3x3 convolutions, ReLU and max pooling", CNNOptions),
        ModelInfo("resnet18", "clbench.models.small:resnet18",
                  "ResNet-18 of continual-learning papers: 3x3 stem without pooling", ResNet18Options),
        ModelInfo("resnet20", "clbench.models.small:resnet20",
                  "ResNet-20 for CIFAR (He et al. 2015), with shortcuts of type A", ResNetCIFAR10Options),
        ModelInfo("resnet32", "clbench.models.small:resnet32",
                  "ResNet-32 for CIFAR (He et al. 2015), with shortcuts of type A", ResNetCIFAR10Options),
        ModelInfo("vit-tiny", "clbench.models.vit:vit",
                  "vision transformer of the size of DeiT-Ti, with patches of 4 pixels", ViTOptions),
        ModelInfo("vit-b16", "clbench.models.vit:vit", "vision transformer ViT-B/16, for images of 224 pixels",
                  ViTB16Options),
        ModelInfo("torchvision:*", "clbench.models.torchvision_models:torchvision",
                  "any torchvision model by its name, as in torchvision:resnet18", VisionOptions,
                  any_name=True, weights="clbench.models.published:TORCHVISION", channels=3),
        ModelInfo("timm:*", "clbench.models.timm_models:timm",
                  "any timm model by its name (extra clbench[timm])", VisionOptions,
                  any_name=True, weights="clbench.models.published:TIMM", channels=3),
        ModelInfo("hf:*", "clbench.models.hf_models:text_model", "pretrained text model: a folder, or OWNER/NAME on "
                  "the Hugging Face Hub", TextModelOptions, any_name=True, text=True,
                  own_weights="clbench.models.hf_files:weights_of"),
    )
