"""One trial: a config in, a row per evaluation and a summary out. PyTorch, without Ray.

`config` (TrialConfig) and `record` (the rows) import no torch; `finetune` trains; `ray_adaptor` is
the only file that imports Ray. Imports nothing from `search`; imports point down:
ray_adaptor > finetune, lr_range, probe > trial > feed > data > training > networks > checkpoint,
record > config > host. timm, torchvision and scikit-learn are imported when a trial uses them.
"""
