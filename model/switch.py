"""What everything attached to a frozen model shares: LoRA's A and B, bottlenecks, prefixes.

What is attached stands in places of the model, each time under a name. One name acts at a time, or none: then the model
is its base, bit for bit. On disk the base's weights keep the names that they have without any of this.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from cli import Mistake, flag


class Place(nn.Module):
    """Where attached parameters stand, by name: in the way of a module of the base, which is frozen, or of its rows."""

    merged = False  # whether what acts here has become part of the base's weights; of LoRA alone

    def __init__(self, base: nn.Module | None = None) -> None:
        super().__init__()
        self.base: Any = None if base is None else base.requires_grad_(False)
        self.adapters: dict[str, Any] = nn.ModuleDict()  # type: ignore[assignment]
        self.active: str | None = None

    def acting(self) -> Any:
        """What acts here now, or None."""
        return None if self.active is None else self.adapters[self.active]


def places(model: nn.Module) -> Iterator[Place]:
    return (module for module in model.modules() if isinstance(module, Place))


def is_new(model: nn.Module, note: dict[str, Any]) -> bool:
    """Whether nothing of the note's kind and name is attached yet; False if it is there, with the same settings.

    note: how to attach it, as a checkpoint keeps it: {"apply": "lora", "r": 8, …, "name": "default"}. Raises Mistake
    for a name that cannot be one, for other settings than those that are there, and while LoRA is merged.
    """
    name = note["name"]
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise Mistake(f"an adapter cannot be named {name!r}: give it a plain word")
    refuse_if_merged(model)
    for other in getattr(model, "attached", []):
        if (other["apply"], other.get("name")) == (note["apply"], name) and other != note:
            settings = " ".join(settings_of(other))
            raise Mistake(f"the model has an adapter named {name!r} already, which goes on learning with {settings}")
    return note not in getattr(model, "attached", [])


def settings_of(note: dict[str, Any]) -> Iterator[str]:
    """A note's settings as flags of the script that attaches it."""
    for key, value in note.items():
        if key not in ("apply", "name") and value is not False:
            value = ",".join(value) if isinstance(value, list) else value
            yield flag(key) if value is True else f"{flag(key)} {value}"


def learn(model: nn.Module, note: dict[str, Any], attached: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Ends every apply function: what is attached acts under its name, and it alone learns. Returns its parameters."""
    notes = getattr(model, "attached", [])
    if note not in notes:
        model.attached = [*notes, note]  # type: ignore[assignment]
    activate(model, note["name"])
    model.requires_grad_(False)
    return [p for module in attached for p in module.requires_grad_(True).parameters()]


def activate(model: nn.Module, name: str | None) -> None:
    """Switches to what is attached under the name, which alone then acts and learns; None leaves the bare base."""
    refuse_if_merged(model)
    if name is not None and not any(name in place.adapters for place in places(model)):
        raise ValueError(f"the model has no adapter named {name!r}")
    for place in places(model):
        place.active = name if name in place.adapters else None
        for other, adapter in place.adapters.items():
            adapter.requires_grad_(other == name)


def refuse_if_merged(model: nn.Module) -> None:
    if any(place.merged for place in places(model)):
        raise Mistake("an adapter is merged into this model; unmerge it first")


# ---- names -----------------------------------------------------------------------------------------------------------


def plain_names(model: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """All parameters under the names that they have on disk: a base's as they were when nothing was attached, and what
    is attached under one name as 'blocks.0.attn.q_proj.lora_A', 'prefix.keys_values', and so on; without the others."""
    found = {plain_name(path, name): parameter for path, parameter in model.named_parameters()}
    return {plain: parameter for plain, parameter in found.items() if ".adapters." not in plain}


def plain_name(path: str, name: str = "default") -> str:
    return path.replace(f".adapters.{name}.", ".").replace(".base.", ".")


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights to which all else is attached."""
    return {plain_name(path): p.detach() for path, p in model.named_parameters() if ".adapters." not in path}
