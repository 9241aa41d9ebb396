"""A command that several processes do together: which of them is heard, and how they end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

from nnmf_cuda.cli.options import one_line, say
from nnmf_cuda.distributed.crew import Crew
from nnmf_cuda.distributed.launched import Launch, launched

MayTell = Callable[[], bool]
"""Whether this process is to tell why the command fails."""


def answer_with_others(answer: Callable[[Crew, MayTell], int]) -> int:
    """Let `answer` do a command with the processes that were started with this one.

    Rank 0 speaks for all, and the first that fails of why. It ends at once and does not wait for
    the others, which whatever has started them ends too, as `torchrun` does.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # lost connections are told once, here
    from nnmf_cuda.distributed.ranks import RanksError

    voice = _Voice()
    try:
        with launched() as voice.launch:
            crew = voice.launch.crew
            code = answer(crew, voice.may_tell)
            if code == 0:
                crew.gathered(None)  # nobody leaves while others need it
            return code
    except RanksError as error:
        if voice.may_tell():
            say(f"nnmf-cuda: error: {one_line(error)}")
    except Exception:  # none that a user can cause: where it comes from, once
        if voice.may_tell():
            traceback.print_exc()
    finally:
        _end_undisturbed()
    return 1


def _end_undisturbed() -> None:
    """Ignore being told to end from now on: what is left is to end."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


_GRACE_S = 1.0
"""For another process to tell what is wrong: when one ends all are ended."""


class _Voice:
    """What a process prints goes nowhere, unless it is rank 0 or fails before all others."""

    def __init__(self) -> None:
        self.launch: Launch | None = None
        self._leads = os.environ["RANK"] == "0"
        self._streams = sys.stdout, sys.stderr
        if not self._leads:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")

    def may_tell(self) -> bool:
        """Return whether this process tells why it fails, and let it be heard then."""
        tells = self._leads if self.launch is None else self.launch.may_tell()
        if tells:
            sys.stdout, sys.stderr = self._streams
        else:
            time.sleep(_GRACE_S)
        return tells
