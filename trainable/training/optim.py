"""Optimizers and their parameter groups: torch.optim's, timm's and schedulefree's."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn, optim

from trainable.config import SCHEDULE_FREE, TrialConfig
from trainable.networks.models import layer_factors
from trainable.training.schedule import adam_constants, weight_decay_of

# torch imports its compiler when one of these is called first, two seconds in every worker, only to
# mark that it is not to be compiled. Nothing here is compiled: they may be called as they are.
for method in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
    plain_method = getattr(getattr(optim.Optimizer, method), "__wrapped__", None)
    if plain_method is not None:
        setattr(plain_method, "__dynamo_disable", plain_method)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    no_bias_decay: bool,
    head: nn.Module | None = None,
    head_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """The trained parameters in groups that share `weight_decay` and `lr_factor`.

    With `no_bias_decay` only weights of convolutions and linear layers decay; biases and the
    gamma and beta of normalization, which have one dimension, do not (He et al. 2019, section 3.1),
    nor does what a network of timm excludes, such as the position embeddings of a transformer.
    """
    in_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    factors = layer_factors(model, layer_decay) if layer_decay != 1 else {}
    spared = _not_to_decay(model) if no_bias_decay else set()
    groups: dict[tuple[bool, float], list[Tensor]] = {}  # the same groups for every weight_decay
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = not no_bias_decay or (parameter.ndim > 1 and name not in spared)
        factor = factors.get(name, 1.0)
        factor *= head_lr_factor if id(parameter) in in_head else 1.0
        groups.setdefault((decays, factor), []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay * decays, "lr_factor": factor}
        for (decays, factor), params in groups.items()
    ]


def _not_to_decay(model: nn.Module) -> set[str]:
    """Names of parameters that a network of timm excludes from weight decay."""
    named: Any = getattr(model, "no_weight_decay", set)
    return set(named())


def build_optimizer(
    config: TrialConfig, model: nn.Module, *, lr: float, head: nn.Module | None = None
) -> optim.Optimizer:
    """The optimizer of the model's trained parameters; `lr` is that of the first update.

    LARS and LAMB adapt the step of every tensor, whether it decays or not, and LAMB does not clip
    gradients: timm's defaults do otherwise. A tensor of zeros takes its step unadapted, where the
    papers' ratio |w| / |step| would keep it at zero for ever. As torch's SGD, LARS multiplies its
    momentum by the current lr; the paper adds up steps at the lr of their time.

    A schedule-free optimizer keeps the weights z that take its steps and their average x. The
    network has y = (1 - beta) z + beta x while it is trained and x while it is evaluated
    (`to_training`, `to_evaluation`); beta is its momentum or beta1. x weighs a step by the square
    of the largest lr so far, so that those of a warmup count less.
    """
    groups = parameter_groups(
        model,
        weight_decay=weight_decay_of(config),
        no_bias_decay=config.no_bias_decay,
        head=head,
        head_lr_factor=config.head_lr_factor,
        layer_decay=config.layer_decay,
    )
    betas, eps = adam_constants(config)
    momentum = config.momentum
    if config.optimizer == "sgd":
        return optim.SGD(groups, lr=lr, momentum=momentum, nesterov=config.nesterov, fused=True)
    if config.optimizer == "adam":
        return optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=True)
    if config.optimizer == "adamw":
        return optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    if config.optimizer == "rmsprop":
        return optim.RMSprop(groups, lr=lr, momentum=momentum, eps=eps)
    if config.optimizer == "adagrad":
        return optim.Adagrad(groups, lr=lr, eps=eps)
    if config.optimizer in SCHEDULE_FREE:
        return _schedule_free(config, groups, lr=lr)
    from timm.optim.lamb import Lamb  # seconds that other optimizers need not wait
    from timm.optim.lars import Lars

    if config.optimizer == "lars":
        nesterov = config.nesterov
        return Lars(groups, lr=lr, momentum=momentum, nesterov=nesterov, always_adapt=True)
    return Lamb(groups, lr=lr, betas=betas, eps=eps, always_adapt=True, max_grad_norm=None)


def _schedule_free(
    config: TrialConfig, groups: list[dict[str, Any]], *, lr: float
) -> optim.Optimizer:
    from schedulefree import AdamWScheduleFree, SGDScheduleFree

    betas, eps = adam_constants(config)
    made: optim.Optimizer = (
        SGDScheduleFree(groups, lr=lr, momentum=config.momentum)
        if config.optimizer == "schedulefree_sgd"
        else AdamWScheduleFree(groups, lr=lr, betas=betas, eps=eps)
    )
    return made


# Their steps read a rate that is a tensor, and count in tensors: a CUDA graph can take them.
CAPTURABLE = (optim.SGD, optim.Adam, optim.AdamW)


def make_capturable(optimizer: optim.Optimizer, device: torch.device) -> None:
    """Give each group a rate on the device, of its own, if a CUDA graph can take the steps."""
    if not isinstance(optimizer, CAPTURABLE):
        return
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are no graph's


def take_step(optimizer: optim.Optimizer) -> None:
    """`optimizer.step()` without its wrappers, which import torch's compiler too."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def to_training(optimizer: optim.Optimizer) -> None:
    """Give the network the weights to train, if the optimizer is schedule-free."""
    if hasattr(optimizer, "train"):
        optimizer.train()


def to_evaluation(optimizer: optim.Optimizer) -> None:
    """Give the network the average of its weights, if the optimizer is schedule-free."""
    if hasattr(optimizer, "eval"):
        optimizer.eval()


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set every group's lr to the update's, times the group's own factor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["lr_factor"])
        else:
            group["lr"] = lr * group["lr_factor"]
