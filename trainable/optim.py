"""Optimizers and their parameter groups, from torch.optim."""

from torch import nn, optim

from trainable.config import TrialConfig


def parameter_groups(
    model: nn.Module, *, weight_decay: float, no_bias_decay: bool
) -> list[dict[str, object]]:
    """The trained parameters, decayed or not.

    With `no_bias_decay` only weights of convolutions and linear layers decay; biases and the
    gamma and beta of normalization, all of one dimension, do not (He et al. 2019, section 3.1).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [each for each in trained if each.ndim > 1 or not no_bias_decay]
    spared = [each for each in trained if each.ndim <= 1 and no_bias_decay]
    groups = [(decayed, weight_decay), (spared, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def build_optimizer(config: TrialConfig, model: nn.Module, *, lr: float) -> optim.Optimizer:
    """The optimizer over the model's trained parameters; `lr` is that of the first update."""
    groups = parameter_groups(
        model, weight_decay=config.weight_decay, no_bias_decay=config.no_bias_decay
    )
    if config.optimizer == "sgd":
        return optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)
    if config.optimizer == "adam":
        return optim.Adam(groups, lr=lr, fused=True)
    return optim.AdamW(groups, lr=lr, fused=True)
