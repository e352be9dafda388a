"""``vaeconv completion``."""

from __future__ import annotations

import os
from enum import Enum
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.common.option_docs import Doc


class Shell(str, Enum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


@declare
def completion(shell: Annotated[Shell, Doc("Shell to write the script for.", "SHELL")]) -> None:
    """Print the script that completes commands, options and values in a shell.

    Examples:

        vaeconv completion bash >> ~/.bashrc

        mkdir -p ~/.zfunc && vaeconv completion zsh > ~/.zfunc/_vaeconv

        vaeconv completion fish > ~/.config/fish/completions/vaeconv.fish

        vaeconv completion powershell >> $PROFILE
    """
    from vaeconv.cli.group import app

    # How a shell asks for it, and for every completion later.
    os.environ["_VAECONV_COMPLETE"] = f"source_{shell.value}"
    app([], prog_name="vaeconv")
