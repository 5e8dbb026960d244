"""Models whose weights come from a file are made without initial ones."""

from typing import Any

from torch.nn import init
from torch.overrides import TorchFunctionMode


class Undrawn(TorchFunctionMode):
    """Inside a with block no initial weights are drawn. For weights without memory, on the device "meta", PyTorch
    would first import its compiler, which takes a second."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (init.normal_, init.kaiming_uniform_, init.uniform_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs or {})
