"""A method of the comparison, and what the same training gives with other settings."""

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model.gpt import GPT
from run.resume import is_finished
from store import checkpoint


class Method(NamedTuple):
    """A method of the comparison: the script that trains it, with which settings, into which run folder."""

    name: str
    script: Any
    settings: dict[str, Any]
    out: str

    def variant(self, name: str, device: torch.device, **changes: Any) -> GPT:
        """The model that the same training gives with some settings changed, trained quietly."""
        run = f"{self.out}-{name}"
        if not is_finished(Path(run)):
            with contextlib.redirect_stdout(io.StringIO()):
                self.script.main(self.config(run, **changes))
        return checkpoint.load_run(run, "", device)[0]

    def config(self, out: str, **changes: Any) -> Any:
        """Of the script; a run that was begun there, and not finished, goes on."""
        return self.script.Config(out=out, **{**self.settings, **changes}, resume=Path(out, "config.json").exists())
